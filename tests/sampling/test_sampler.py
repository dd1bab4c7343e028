import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.config import MeshConfig, SamplingConfig
from dalle_jax.data.text.tokenizer import train_tokenizer
from dalle_jax.models.attention import Pattern
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import PAD, Prior
from dalle_jax.models.transformer import BlockShape, Transformer
from dalle_jax.sampling.decode import decode
from dalle_jax.sampling.sampler import Sampler, encode_prompts
from dalle_jax.sharding import make_mesh

PRIOR = Prior(7, 8, Transformer(BlockShape(1, 8, 2), (Pattern('full', 4, 2),)))
DVAE = Dvae(image_vocab_size=8, hidden_size=4, decoder_input_size=4, num_groups=2, blocks_per_group=1)
TEXTS = np.array([[3, 6, PAD], [2, 1, 5], [4, PAD, PAD], [3, 6, PAD], [1, PAD, PAD]], np.int32)


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(3)

  def fresh():
    key, image = jax.random.key(0), jnp.zeros((1, 4, 4, 3))
    return {'prior': PRIOR.init(key), 'dvae': DVAE.init(key, image)['params']}

  shapes = nn.unbox(jax.eval_shape(fresh))
  return jax.tree.map(lambda leaf: jnp.asarray(0.7 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope='module')
def sampler():
  @functools.cache
  def make(batch_size):
    settings = SamplingConfig(batch_size=batch_size, temperature=0.8, top_k=6)
    return Sampler(PRIOR, DVAE, make_mesh(MeshConfig()), settings)

  return make


@pytest.fixture(scope='module')
def images(params, sampler):
  return sampler(5)(params, TEXTS, seed=3)


def test_images_do_not_depend_on_the_batch_size(params, sampler, images):
  assert (images.shape, images.dtype) == ((5, 4, 4, 3), np.uint8)
  np.testing.assert_array_equal(sampler(2)(params, TEXTS, seed=3), images)
  np.testing.assert_array_equal(sampler(5)(params, TEXTS[:2], seed=3), images[:2])


def test_images_depend_on_the_seed_the_image_number_and_the_prompt(params, sampler, images):
  np.testing.assert_array_equal(sampler(5)(params, TEXTS, seed=3), images)
  assert np.any(sampler(5)(params, TEXTS, seed=4) != images)
  assert np.any(images[0] != images[3])  # same prompt, different image numbers
  assert np.any(sampler(5)(params, TEXTS[::-1].copy(), seed=3) != images)


def test_images_are_the_decoded_sampled_codes(params, images):
  base = jax.random.key(3)
  keys = jnp.stack([jax.random.fold_in(base, i) for i in range(5)])
  prefix = np.pad(TEXTS, ((0, 0), (0, 1)))
  tokens, _ = jax.jit(lambda p, x, k: decode(PRIOR, p, x, k, temperature=0.8, top_k=6))(params['prior'], prefix, keys)
  codes = (tokens[:, 4:] - 7).reshape(5, 2, 2)
  pixels = jax.jit(lambda p, x: DVAE.apply({'params': p}, x, method='decode'))(params['dvae'], codes)
  np.testing.assert_allclose(images, pixels, atol=0.51)


def test_progress_counts_only_tokens_of_the_requested_images(params, sampler):
  seen = []
  sampler(2)(params, TEXTS, 0, lambda done, total: seen.append((done, total)))
  assert seen == [(4, 20), (8, 20), (12, 20), (16, 20), (18, 20), (20, 20)]


def test_top_k_above_the_number_of_image_tokens_is_refused():
  with pytest.raises(ValueError, match=r'top_k 9 .* 8 image tokens .*--top_k'):
    Sampler(PRIOR, DVAE, make_mesh(MeshConfig()), SamplingConfig(top_k=9))


@pytest.fixture(scope='module')
def tokenizer():
  words = [f'a {size} {color} circle' for size in ('small', 'large') for color in ('red', 'blue', 'green')]
  return train_tokenizer(words * 4, 300)


def test_prompts_are_encoded_as_padded_rows(tokenizer):
  rows = encode_prompts(tokenizer, ['a red circle', 'a large blue circle'], 16)
  assert (rows.shape, rows.dtype) == ((2, 15), np.int32)
  assert [tokenizer.decode(row) for row in rows] == ['a red circle', 'a large blue circle']
  assert rows[0, -1] == PAD


def test_prompts_that_are_too_long_are_refused_or_truncated(tokenizer):
  prompt = 'a red circle ' * 9
  with pytest.raises(ValueError, match=r'takes at most 7; shorten it, or cut it off with --truncate'):
    encode_prompts(tokenizer, ['a red circle', prompt], 8)
  row = encode_prompts(tokenizer, [prompt], 8, truncate=True)[0]
  np.testing.assert_array_equal(row, tokenizer.encode(prompt)[:7])


@pytest.mark.parametrize('prompt', ['', '  \n'])
def test_empty_prompts_are_refused(tokenizer, prompt):
  with pytest.raises(ValueError, match='empty'):
    encode_prompts(tokenizer, ['a red circle', prompt], 8)
