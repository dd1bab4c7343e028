import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.models.attention import Pattern
from dalle_jax.models.prior import PAD, Prior
from dalle_jax.models.transformer import BlockShape, Transformer
from dalle_jax.sampling.decode import decode
from dalle_jax.sampling.logits import sample

TEXT, IMAGE = 7, 5
PRIOR = Prior(TEXT, IMAGE, Transformer(BlockShape(2, 8, 2), (Pattern('row', 4, 2), Pattern('column', 4, 2))))
TEXTS = np.array([[3, 6, PAD, PAD], [2, 1, 5, PAD], [4, PAD, PAD, PAD]], np.int32)


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(3)
  shapes = nn.unbox(jax.eval_shape(lambda: PRIOR.init(jax.random.key(0))))
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope='module')
def keys():
  return jax.random.split(jax.random.key(5), len(TEXTS))


@pytest.fixture(scope='module')
def logits():
  return jax.jit(PRIOR.logits)


_jitted = jax.jit(decode, static_argnums=0, static_argnames=('temperature', 'top_k'))


def _decode(params, prefix, keys, **settings):
  tokens, not_finite = _jitted(PRIOR, params, prefix, keys, **settings)
  assert np.all(np.asarray(not_finite) == PRIOR.length)
  return np.asarray(tokens)


def _naive(logits, params, prefix, keys, temperature=1.0, top_k=0):
  """Decode without a cache: compute the logits of the full sequence for every token."""
  tokens = np.tile(np.where(np.arange(PRIOR.length) < 4, PAD, TEXT).astype(np.int32), (len(prefix), 1))
  tokens[:, : prefix.shape[1]] = prefix
  for position in range(prefix.shape[1], PRIOR.length):
    folded = jnp.stack([jax.random.fold_in(key, position) for key in keys])
    tokens[:, position] = sample(folded, logits(params, tokens)[:, position], temperature, top_k)
  return tokens


@pytest.mark.parametrize(
  ('length', 'settings'),
  [(4, {}), (4, {'temperature': 0.7, 'top_k': 2}), (4, {'temperature': 0.0}), (0, {}), (6, {})],
)
def test_decoding_with_the_cache_equals_sampling_from_full_sequence_logits(params, keys, logits, length, settings):
  prefix = np.concatenate([TEXTS, np.full((3, 2), TEXT + 1, np.int32)], axis=1)[:, :length]
  drawn = _decode(params, prefix, keys, **settings)
  assert drawn.dtype == np.int32
  np.testing.assert_array_equal(drawn, _naive(logits, params, prefix, keys, **settings))


def test_temperature_zero_takes_the_likeliest_tokens_whatever_the_keys(params, keys, logits):
  drawn = _decode(params, TEXTS, keys, temperature=0.0)
  np.testing.assert_array_equal(drawn, _decode(params, TEXTS, keys[::-1], temperature=0.0))
  best = np.argmax(logits(params, drawn), axis=-1)
  np.testing.assert_array_equal(drawn[:, 4:], best[:, 4:])


def test_tokens_sampled_without_a_prefix_are_text_then_image_tokens(params, keys):
  drawn = _decode(params, np.zeros((3, 0), np.int32), keys)
  assert np.all(drawn[:, :3] < TEXT)
  assert np.all(drawn[:, 3] == PAD)
  ended = drawn[:, :3] == PAD
  np.testing.assert_array_equal(np.logical_or.accumulate(ended, axis=1), ended)  # only pads follow a pad
  assert np.all((drawn[:, 4:] >= TEXT) & (drawn[:, 4:] < TEXT + IMAGE))


def test_a_row_does_not_depend_on_the_other_rows_of_its_batch(params, keys):
  together = _decode(params, TEXTS, keys)
  for row in range(len(TEXTS)):
    np.testing.assert_array_equal(_decode(params, TEXTS[row : row + 1], keys[row : row + 1])[0], together[row])
  assert len({tuple(row) for row in together[:, 4:]}) > 1
