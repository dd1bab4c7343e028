"""Compares the reranker with a numpy implementation of CLIP, and its losses with their definition."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.config import Config
from dalle_jax.factory import make_reranker
from dalle_jax.models import reranker as module
from dalle_jax.models.reranker import ImageEncoder, Reranker, TextEncoder
from dalle_jax.models.transformer import BlockShape

VOCAB, LENGTH, SIZE, PATCH, HEADS = 11, 6, 8, 4, 2
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def _make(stem='patch', end_of_text='first_pad', activation='quick_gelu'):
  image, text = (BlockShape(2, width, HEADS, mlp=activation) for width in (8, 12))
  return Reranker(
    ImageEncoder(SIZE, PATCH, stem, image, 5, MEAN, STD), TextEncoder(VOCAB, LENGTH, text, 5, end_of_text)
  )


def _random(model):
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda: module.init(model, jax.random.key(0))))
  return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@functools.cache
def _applied(method, **options):
  model = _make(**options)
  params = _random(model)
  run = jax.jit(lambda *inputs: model.apply({'params': params}, *inputs, method=method))
  return params, lambda *inputs: jax.device_get(run(*inputs))


def _images(count=3):
  return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


# --- CLIP in numpy (Radford et al. 2021, figure 3; ViT of Dosovitskiy et al. 2021) ---


def _norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']


def _block(x, p, causal):
  """One transformer block for x [T, D], computed head by head."""
  kernel, bias, mixed = p['qkv']['kernel'], p['qkv']['bias'], []
  y = _norm(x, p['attention_norm'])
  for head in range(HEADS):
    query, key, value = (y @ kernel[:, i, head] + bias[i, head] for i in range(3))
    scores = query @ key.T / math.sqrt(query.shape[-1])
    if causal:
      scores[np.triu_indices(len(x), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed.append(weights / weights.sum(-1, keepdims=True) @ value)
  x = x + sum(m @ p['out']['kernel'][head] for head, m in enumerate(mixed)) + p['out']['bias']
  y = _norm(x, p['mlp_norm']) @ p['mlp']['mlp_in']['kernel'] + p['mlp']['mlp_in']['bias']
  y = y / (1 + np.exp(-1.702 * y))
  return x + y @ p['mlp']['mlp_out']['kernel'] + p['mlp']['mlp_out']['bias']


def _stack(x, p, causal):
  for layer in range(2):
    x = _block(x, jax.tree.map(lambda leaf, i=layer: leaf[i], p['layers']['block_0']), causal)
  return _norm(x, p['norm'])


def _unit(x):
  return x / np.linalg.norm(x)


def _image_features(image, p):
  pixels = (image / 255 - MEAN) / STD
  patches = [
    np.einsum('hwc,hwcd->d', pixels[i : i + PATCH, j : j + PATCH], p['patch_kernel'])
    for i in range(0, SIZE, PATCH) for j in range(0, SIZE, PATCH)
  ]  # fmt: skip
  x = np.stack([p['class_embedding'], *patches]) + p['position']
  return _stack(_norm(x, p['norm_pre']), p['transformer'], causal=False)[0]


def _text_embedding(ids, end, p):
  x = p['embedding'][ids] + p['position'][: len(ids)]
  return _unit(_stack(x, p['transformer'], causal=True)[end] @ p['projection_kernel'])


def test_image_embeddings_match_clip():
  params, features = _applied('image_features')
  _, embeddings = _applied('image_embeddings')
  images = _images()
  expected = np.stack([_image_features(image, params['image']) for image in images])
  np.testing.assert_allclose(features(images), expected, atol=1e-4)
  expected = [_unit(x @ params['image']['projection_kernel']) for x in expected]
  np.testing.assert_allclose(embeddings(images), expected, atol=1e-4)


@pytest.mark.parametrize(
  ('end_of_text', 'texts', 'padded', 'ends'),
  [
    ('first_pad', [[3, 9, 0, 0, 0], [3, 9, 4, 1, 2]], [[3, 9, 0, 0, 0, 0], [3, 9, 4, 1, 2, 0]], [2, 5]),
    ('largest_id', [[8, 4, 10, 0, 0, 0], [8, 4, 0, 1, 2, 10]], [[8, 4, 10, 0, 0, 0], [8, 4, 0, 1, 2, 10]], [2, 5]),
  ],
)
def test_text_embeddings_match_clip(end_of_text, texts, padded, ends):
  params, embeddings = _applied('text_embeddings', end_of_text=end_of_text)
  expected = [_text_embedding(np.array(ids), end, params['text']) for ids, end in zip(padded, ends, strict=True)]
  np.testing.assert_allclose(embeddings(np.array(texts)), expected, atol=1e-4)


def test_ids_after_the_end_of_text_do_not_change_the_embedding():
  _, embeddings = _applied('text_embeddings')
  texts = np.array([[3, 9, 0, 0, 0], [3, 9, 0, 7, 5], [3, 8, 0, 0, 0]])
  text, same_until_end, different = embeddings(texts)
  np.testing.assert_allclose(text, same_until_end, atol=1e-6)
  assert np.abs(text - different).max() > 1e-2


@pytest.mark.parametrize('stem', module.STEMS)
def test_image_embeddings_have_unit_length_for_every_image(stem):
  _, embeddings = _applied('image_embeddings', stem=stem, activation='gelu')
  images = np.concatenate([_images(), np.zeros((1, SIZE, SIZE, 3), np.uint8)])
  vectors = embeddings(images)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
  assert len(np.unique(vectors.round(4), axis=0)) == 4


def test_convolutions_of_the_stem_halve_the_resolution():
  params = _random(_make(stem='conv'))['image']
  assert params['conv_1']['kernel'].shape == (3, 3, 12, 2)  # 12 input channels: 2 x 2 pixels of 3 channels
  assert params['conv_2']['kernel'].shape == (3, 3, 8, 4)
  assert params['patch_kernel'].shape == (1, 1, 4, 8)
  assert params['position'].shape == (5, 8)


def test_vit_b_32_has_the_published_number_of_parameters():
  """OpenAI's file of ViT-B/32 holds 151,277,313 trained parameters."""
  clip = {
    'embed_dim': 512, 'patch_size': 32, 'image_num_layers': 12, 'image_width': 768, 'image_num_heads': 12,
    'text_num_layers': 12, 'text_width': 512, 'text_num_heads': 8, 'activation': 'quick_gelu',
  }  # fmt: skip
  data = {'source': 'folder', 'path': 'unused', 'image_size': 224}
  config = Config.from_dict({'task': 'reranker', 'data': data, 'tokenizer': {'text_length': 77}, 'reranker': clip})
  shapes = jax.eval_shape(lambda: module.init(make_reranker(config, 49_408), jax.random.key(0)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 151_277_313


def test_scale_of_cosines_is_at_most_100():
  model, texts = _make(), np.ones((1, LENGTH - 1), np.int32)
  params = _random(model)
  scale = jax.jit(lambda params: model.apply({'params': params}, _images(1), texts)[2])
  for value, expected in ((2.0, math.exp(2)), (9.0, 100.0)):
    assert scale(params | {'logit_scale': jnp.float32(value)}) == pytest.approx(expected, rel=1e-5)


# --- Losses and accuracies ---


def _random_scores(count=5):
  return np.random.default_rng(2).normal(size=(count, count)).astype(np.float32)


def test_loss_equals_clips_loss_if_no_caption_repeats():
  scores = _random_scores()
  images, texts = module.contrastive_losses(jnp.asarray(scores), jnp.eye(5, dtype=bool))
  for loss, rows in ((images, scores), (texts, scores.T)):
    expected = [math.log(np.exp(row).sum()) - row[i] for i, row in enumerate(rows)]
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


def test_images_with_equal_captions_share_the_target():
  text = np.array([[1, 2], [3, 0], [1, 2], [4, 0], [1, 2]])
  positives = np.asarray(module.same_text(text, text))
  groups = [0, 1, 0, 2, 0]
  assert positives.tolist() == [[a == b for b in groups] for a in groups]
  perfect = np.where(positives, 50.0, 0.0)
  least = np.mean([math.log(groups.count(group)) for group in groups])
  for loss in module.contrastive_losses(jnp.asarray(perfect), jnp.asarray(positives)):
    assert loss == pytest.approx(least, rel=1e-5)
  # All positives of a row have the same gradient.
  gradient = jax.grad(lambda x: sum(module.contrastive_losses(x, jnp.asarray(positives))))(jnp.zeros((5, 5)))
  assert gradient[0, 2] == pytest.approx(float(gradient[0, 0])) and gradient[0, 2] < 0 < gradient[0, 1]


def test_accuracy_counts_every_positive_as_correct():
  text = np.array([[1], [2], [1]])
  positives = np.asarray(module.same_text(text, text))
  scores = np.array([[0.0, 1.0, 2.0], [0.0, 3.0, 0.0], [9.0, 0.0, 0.0]])
  images, texts = module.accuracies(jnp.asarray(scores), jnp.asarray(positives))
  assert (images, texts) == (1.0, 1.0)
  images, texts = module.accuracies(jnp.asarray(scores[[1, 0, 2]]), jnp.asarray(positives))
  assert (float(images), float(texts)) == pytest.approx((1 / 3, 1 / 3))


def test_texts_without_an_image_are_negatives_unless_they_repeat_a_caption():
  scores = np.random.default_rng(3).normal(size=(2, 4)).astype(np.float32)
  positives = np.asarray(module.same_text(np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4], [2, 1], [3, 4]])))
  assert positives.tolist() == [[True, False, False, False], [False, True, False, True]]
  images, texts = module.contrastive_losses(jnp.asarray(scores), jnp.asarray(positives))
  logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
  assert images == pytest.approx(-(logs[0, 0] + (logs[1, 1] + logs[1, 3]) / 2) / 2, rel=1e-5)
  assert texts == pytest.approx(float(module.contrastive_losses(scores[:, :2], np.eye(2, dtype=bool))[1]), rel=1e-5)
