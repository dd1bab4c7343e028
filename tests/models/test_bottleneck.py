import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dalle_jax.models import bottleneck

LOGITS = hnp.arrays(np.float32, (5,), elements=st.floats(-20, 20, width=32))


def _softmax(logits):
  weights = np.exp(np.float64(logits) - np.max(logits))
  return weights / weights.sum()


def test_gumbel_samples_at_low_temperature_are_one_hot_with_softmax_frequencies():
  count, logits = 20_000, np.array([0.0, 1.0, -1.0, 2.0], np.float32)
  samples = bottleneck.gumbel_softmax(jnp.broadcast_to(logits, (count, 4)), jax.random.key(0), 1e-3)
  np.testing.assert_allclose(samples.sum(-1), 1, rtol=1e-5)
  assert np.mean(np.max(samples, -1) > 0.99) > 0.98
  expected = _softmax(logits)
  observed = np.bincount(np.argmax(samples, -1), minlength=4) / count
  np.testing.assert_allclose(observed, expected, atol=4.5 * np.sqrt(0.25 / count))


def test_gumbel_samples_at_high_temperature_are_uniform_and_all_samples_lie_on_the_simplex():
  logits = jax.random.normal(jax.random.key(1), (64, 8))
  hot = bottleneck.gumbel_softmax(logits, jax.random.key(2), 1e4)
  np.testing.assert_allclose(hot, 1 / 8, atol=1e-3)
  warm = bottleneck.gumbel_softmax(logits, jax.random.key(2), 1.0)
  assert warm.min() >= 0
  np.testing.assert_allclose(warm.sum(-1), 1, rtol=1e-5)


def test_gumbel_samples_are_differentiable_in_the_logits():
  def score(logits):
    return bottleneck.gumbel_softmax(logits, jax.random.key(3), 1.0)[0]

  gradient = jax.grad(score)(jnp.zeros(3))
  assert gradient[0] > 0
  assert np.all(gradient[1:] < 0)


def test_gumbel_samples_of_bfloat16_logits_are_float32():
  assert bottleneck.gumbel_softmax(jnp.zeros(3, jnp.bfloat16), jax.random.key(0), 1.0).dtype == jnp.float32


@given(LOGITS)
@settings(deadline=None)
def test_kl_to_uniform_matches_its_definition_and_lies_between_0_and_ln_k(logits):
  p = _softmax(logits)
  expected = np.sum(p * np.log(np.maximum(p, 1e-300) * len(p)))
  kl = float(bottleneck.kl_to_uniform(jnp.asarray(logits)))
  assert kl == pytest.approx(expected, abs=1e-5)
  assert -1e-5 <= kl <= np.log(len(p)) + 1e-5


def test_kl_to_uniform_of_equal_and_one_hot_logits():
  logits = jnp.array([[0.0] * 8, [100.0] + [0.0] * 7, [5.0] * 8])
  np.testing.assert_allclose(bottleneck.kl_to_uniform(logits), [0, np.log(8), 0], atol=1e-6)


def test_histogram_accepts_codes_of_any_shape_and_includes_unused_codes():
  histogram = bottleneck.code_histogram(jnp.array([[[0, 2], [2, 2]]]), 5)
  np.testing.assert_allclose(histogram, [0.25, 0, 0.75, 0, 0])


@given(hnp.arrays(np.float64, (6,), elements=st.floats(0, 1)).filter(lambda x: x.sum() > 0.1))
@settings(deadline=None)
def test_perplexity_lies_between_one_and_the_number_of_used_codes(weights):
  histogram = weights / weights.sum()
  perplexity = float(bottleneck.perplexity(jnp.asarray(histogram, jnp.float32)))
  assert 1 - 1e-4 <= perplexity <= np.sum(weights > 0) + 1e-4


@pytest.mark.parametrize('used', [1, 3, 8])
def test_perplexity_of_a_uniform_distribution_is_the_number_of_used_codes(used):
  histogram = jnp.where(jnp.arange(8) < used, 1 / used, 0.0)
  assert bottleneck.perplexity(histogram) == pytest.approx(used, rel=1e-5)


def test_straight_through_has_the_value_of_hard_and_the_gradient_of_soft():
  value, slope = jax.value_and_grad(lambda x: bottleneck.straight_through(jnp.round(x), x**2))(1.6)
  assert (value, slope) == (2.0, pytest.approx(3.2))


def _bound(module, z):
  """The module, bound to parameters with random entries."""
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), z, method='codes')))
  return module.bind(jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes))


def _latents(channels, scale=1.0):
  return scale * jax.random.normal(jax.random.key(5), (2, 3, 3, channels))


def test_gumbel_codes_are_argmaxes_and_vectors_are_rows_of_the_kernel():
  z = _latents(6)
  code = _bound(bottleneck.GumbelCodebook(6, 4, 1.0, hard=False), z)
  codes = code.codes(z)
  np.testing.assert_array_equal(codes, np.argmax(z, -1))
  np.testing.assert_allclose(code.vectors(codes), code.mix(jax.nn.one_hot(codes, 6)), atol=1e-6)
  soft = bottleneck.gumbel_softmax(z, jax.random.key(1), 0.7)
  np.testing.assert_allclose(code.relax(z, jax.random.key(1), 0.7), code.mix(soft), atol=1e-6)


def test_hard_gumbel_samples_are_rows_of_the_kernel_with_soft_gradients():
  z, key = _latents(6), jax.random.key(1)
  soft = _bound(bottleneck.GumbelCodebook(6, 4, 1.0, hard=False), z)
  hard = _bound(bottleneck.GumbelCodebook(6, 4, 1.0, hard=True), z)
  chosen = np.argmax(bottleneck.gumbel_softmax(z, key, 0.7), -1)
  np.testing.assert_allclose(hard.relax(z, key, 0.7), hard.vectors(chosen), atol=1e-5)
  weights = _latents(4)
  slopes = [jax.grad(lambda z, c=c: jnp.sum(c.relax(z, key, 0.7) * weights))(z) for c in (soft, hard)]
  np.testing.assert_allclose(*slopes, atol=1e-5)
  assert np.abs(slopes[0]).max() > 0.01


def test_vector_codes_are_nearest_neighbours_and_gradients_pass_straight_through():
  z = _latents(4)
  code = _bound(bottleneck.VectorCodebook(5, 4), z)
  distances = np.sum((np.asarray(z)[..., None, :] - np.asarray(code.codebook)) ** 2, axis=-1)
  codes = code.codes(z)
  np.testing.assert_array_equal(codes, np.argmin(distances, -1))
  assert len(np.unique(codes)) > 2
  np.testing.assert_allclose(code.relax(z, None, None), code.vectors(codes), atol=1e-6)
  weights = _latents(4)[::-1]
  np.testing.assert_allclose(jax.grad(lambda z: jnp.sum(code.relax(z, None, None) * weights))(z), weights)


@pytest.mark.parametrize('levels', [(8, 5, 5, 5), (3, 4), (5,), (7, 6)])
def test_scalar_codes_and_levels_map_one_to_one(levels):
  z = _latents(len(levels), scale=3.0)
  code = _bound(bottleneck.ScalarCodebook(levels, 4, 1.0), z)
  codes = code.codes(z)
  assert 0 <= codes.min() and codes.max() < np.prod(levels)
  np.testing.assert_allclose(code.vectors(codes), code.relax(z, None, None), atol=1e-5)
  all_codes = jnp.arange(np.prod(levels)).reshape(1, 1, -1)
  vectors = np.asarray(code.vectors(all_codes))[0, 0]
  assert len({tuple(np.round(row, 4)) for row in vectors}) == np.prod(levels)


@pytest.mark.parametrize('level', [3, 4, 5, 8])
def test_scalar_rounding_reaches_all_levels_and_keeps_zero_in_the_middle(level):
  code = _bound(bottleneck.ScalarCodebook((level,), 1, 1.0), jnp.zeros((1, 1, 1, 1)))
  z = jnp.linspace(-9, 9, 2001).reshape(1, 1, -1, 1)
  rounded = np.asarray(code._rounded(z)).ravel()
  np.testing.assert_array_equal(np.unique(rounded), np.arange(level) - level // 2)
  assert np.all(np.diff(rounded) >= 0)
  assert code._rounded(jnp.zeros((1, 1, 1, 1))) == 0
  slope = jax.grad(lambda z: code._rounded(z).sum())(jnp.zeros((1, 1, 1, 1)))
  assert 0 < float(slope.squeeze()) <= (level - 1) / 2
