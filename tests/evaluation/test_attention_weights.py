import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.evaluation import attention_weights
from dalle_jax.models.attention import Pattern
from dalle_jax.models.language import TransformerLanguageModel
from dalle_jax.models.ngram import Ngram
from dalle_jax.models.prior import PAD, Prior
from dalle_jax.models.transformer import BlockShape, Transformer

TEXT, GRID = 4, 3
SHAPE = BlockShape(num_layers=6, embed_dim=8, num_heads=2, mlp_ratio=1)
MODERN = dataclasses.replace(SHAPE, norm='rmsnorm', mlp='swiglu', qk_norm=True, sandwich_norm=True, rotary=True)


def _prior(shape, text=TEXT, grid=GRID):
  row, column, conv = (Pattern(kind, text, grid, 3) for kind in ('row', 'column', 'conv'))
  # Two scanned periods of two layers, one remaining layer, and a last layer with another pattern.
  return Prior(7, 8, Transformer(dataclasses.replace(shape, num_layers=6), (row, column), conv))


def _full(shape):
  return Prior(7, 8, Transformer(dataclasses.replace(shape, num_layers=3), (Pattern('full', TEXT, GRID),)))


def _text(shape):
  return TransformerLanguageModel(7, Transformer(dataclasses.replace(shape, num_layers=2), (Pattern('full', 9, 0),)))


def _params(model, scale=0.7):
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0))))
  return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def _stream(model):
  rng = np.random.default_rng(1)
  image = rng.integers(0, 8, (1, model.image_length))
  text = np.pad(np.array([[3, 5]]), ((0, 0), (0, model.text_length - 3)), constant_values=PAD)
  return np.asarray(model.stream(jnp.asarray(text), jnp.asarray(image)))[0]


MODELS = {
  'patterns': _prior(SHAPE),
  'modern patterns': _prior(MODERN),
  'full': _full(SHAPE),
  'modern full': _full(MODERN),
  'text': _text(SHAPE),
  'modern text': _text(MODERN),
}


@pytest.mark.parametrize('name', MODELS)
def test_weights_sum_to_one_within_the_pattern_and_logits_equal_the_models_logits(name):
  model = MODELS[name]
  params = _params(model)
  tokens = _stream(model) if isinstance(model, Prior) else np.array([1, 0, 6, 5, 5, 2, 3])
  count, heads = model.transformer.shape.num_layers, (0, 1)
  logits, attention = attention_weights.capture(model, params, tokens, range(count), heads)
  expected = jax.jit(model.logits)(params, tokens[None])[0]
  np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=2e-4)
  size = len(tokens)
  assert sorted(attention.heads) == [(layer, head) for layer in range(count) for head in heads]
  for (layer, _), weights in attention.heads.items():
    mask = model.transformer.layer_patterns[layer].mask()[:size, :size]
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert not weights[~mask].any() and (weights[mask] > 0).all()
  for layer in range(count):
    expected = (attention.heads[layer, 0] + attention.heads[layer, 1]) / 2
    np.testing.assert_allclose(attention.layers[layer], expected, atol=1e-6)
  np.testing.assert_allclose(attention.mean, np.mean(list(attention.layers.values()), axis=0), atol=1e-6)


def test_only_requested_layers_and_heads_are_returned_but_the_mean_covers_all():
  model = MODELS['full']
  params = _params(model)
  _, everything = attention_weights.capture(model, params, _stream(model), (0, 1, 2), (0, 1))
  _, some = attention_weights.capture(model, params, _stream(model), (2,), (1,))
  assert list(some.layers) == [2] and list(some.heads) == [(2, 1)]
  np.testing.assert_array_equal(some.heads[2, 1], everything.heads[2, 1])
  np.testing.assert_allclose(some.mean, everything.mean, atol=1e-6)


def test_long_sequences_that_training_computes_in_blocks_give_the_same_logits_and_pattern():
  model = _prior(SHAPE, grid=17)  # 293 slots, more than sparse_attention.SHORT
  params, tokens = _params(model, 0.3), _stream(model)
  logits, attention = attention_weights.capture(model, params, tokens, (0,), (0,))
  np.testing.assert_allclose(logits, jax.jit(model.logits)(params, tokens[None])[0], atol=5e-4, rtol=5e-4)
  np.testing.assert_array_equal(attention.heads[0, 0] > 0, Pattern('row', TEXT, 17).mask())


def test_certainty_matches_hand_computed_values():
  logits = np.log(np.array([[0.5, 0.25, 0.25, 1e-300], [0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1]]))
  logits[0, 3], logits[2] = -np.inf, 3.0
  certainty = attention_weights.certainty(logits, np.array([1, 0, 3]))
  np.testing.assert_allclose(certainty.probability, [0.25, 0.1, 0.25], rtol=1e-5)
  entropy = [1.5, -sum(p * np.log2(p) for p in (0.1, 0.2, 0.3, 0.4)), 2]
  np.testing.assert_allclose(certainty.entropy, entropy, rtol=1e-5)
  np.testing.assert_array_equal(certainty.rank, [2, 4, 1])


def test_maps_place_weights_at_the_positions_of_the_tokens():
  rng = np.random.default_rng(2)
  weights = rng.random((TEXT + GRID**2,) * 2)
  maps = attention_weights.image_maps(weights, [[1], [2, 3]], TEXT, GRID)
  assert maps.shape == (2, GRID, GRID)
  assert maps[0, 1, 2] == weights[TEXT + 5, 1] and maps[1, 2, 0] == weights[TEXT + 6, 2] + weights[TEXT + 6, 3]
  last_map = attention_weights.image_map(weights[-1], TEXT, GRID)
  assert last_map[0, 0] == weights[-1, TEXT + 1]  # the input of the slot after start-of-image is image token 0
  assert last_map[2, 1] == weights[-1, -1] and last_map[2, 2] == 0


def test_weights_by_offset_match_brute_force_and_show_the_column_pattern():
  rng = np.random.default_rng(3)
  weights = rng.random((TEXT + GRID**2,) * 2)
  sums, counts = np.zeros((2, GRID, 2 * GRID - 1))
  for query in range(GRID**2):
    for key in range(GRID**2):
      up, aside = query // GRID - key // GRID, key % GRID - query % GRID
      if up >= 0:
        sums[GRID - 1 - up, GRID - 1 + aside] += weights[TEXT + query, TEXT + key]
        counts[GRID - 1 - up, GRID - 1 + aside] += 1
  np.testing.assert_allclose(attention_weights.by_offset(weights, TEXT, GRID), sums / counts)
  column = Pattern('column', TEXT, GRID).mask().astype(float)
  np.testing.assert_array_equal(attention_weights.by_offset(column, TEXT, GRID) > 0, np.arange(5) == [[2]] * 3)


def test_an_ngram_has_no_attention_and_transformers_have():
  assert attention_weights.has_attention(MODELS['text']) and attention_weights.has_attention(MODELS['full'])
  assert not attention_weights.has_attention(Ngram(7, 9, 3))
