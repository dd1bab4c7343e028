import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dalle_jax.models import bottleneck

LOGITS = hnp.arrays(np.float32, (5,), elements=st.floats(-20, 20, width=32))


def _softmax(logits):
  weights = np.exp(np.float64(logits) - np.max(logits))
  return weights / weights.sum()


def test_cold_samples_are_one_hot_with_the_frequencies_of_the_softmax():
  count, logits = 20_000, np.array([0.0, 1.0, -1.0, 2.0], np.float32)
  samples = bottleneck.gumbel_softmax(jnp.broadcast_to(logits, (count, 4)), jax.random.key(0), 1e-3)
  np.testing.assert_allclose(samples.sum(-1), 1, rtol=1e-5)
  assert np.mean(np.max(samples, -1) > 0.99) > 0.98
  expected = _softmax(logits)
  observed = np.bincount(np.argmax(samples, -1), minlength=4) / count
  np.testing.assert_allclose(observed, expected, atol=4.5 * np.sqrt(0.25 / count))


def test_hot_samples_are_nearly_uniform_and_every_sample_lies_on_the_simplex():
  logits = jax.random.normal(jax.random.key(1), (64, 8))
  hot = bottleneck.gumbel_softmax(logits, jax.random.key(2), 1e4)
  np.testing.assert_allclose(hot, 1 / 8, atol=1e-3)
  warm = bottleneck.gumbel_softmax(logits, jax.random.key(2), 1.0)
  assert warm.min() >= 0
  np.testing.assert_allclose(warm.sum(-1), 1, rtol=1e-5)


def test_samples_are_soft_forward_and_let_gradients_through():
  def score(logits):
    return bottleneck.gumbel_softmax(logits, jax.random.key(3), 1.0)[0]

  gradient = jax.grad(score)(jnp.zeros(3))
  assert gradient[0] > 0
  assert np.all(gradient[1:] < 0)


def test_half_precision_logits_are_sampled_in_float32():
  assert bottleneck.gumbel_softmax(jnp.zeros(3, jnp.bfloat16), jax.random.key(0), 1.0).dtype == jnp.float32


@given(LOGITS)
@settings(deadline=None)
def test_kl_to_uniform_is_its_definition_and_bounded(logits):
  p = _softmax(logits)
  expected = np.sum(p * np.log(np.maximum(p, 1e-300) * len(p)))
  kl = float(bottleneck.kl_to_uniform(jnp.asarray(logits)))
  assert kl == pytest.approx(expected, abs=1e-5)
  assert -1e-5 <= kl <= np.log(len(p)) + 1e-5


def test_kl_of_the_extremes_and_under_a_shift():
  logits = jnp.array([[0.0] * 8, [100.0] + [0.0] * 7, [5.0] * 8])
  np.testing.assert_allclose(bottleneck.kl_to_uniform(logits), [0, np.log(8), 0], atol=1e-6)


def test_histogram_counts_codes_of_any_shape_and_keeps_unused_ones():
  histogram = bottleneck.code_histogram(jnp.array([[[0, 2], [2, 2]]]), 5)
  np.testing.assert_allclose(histogram, [0.25, 0, 0.75, 0, 0])


@given(hnp.arrays(np.float64, (6,), elements=st.floats(0, 1)).filter(lambda x: x.sum() > 0.1))
@settings(deadline=None)
def test_perplexity_lies_between_one_and_the_number_of_codes_in_use(weights):
  histogram = weights / weights.sum()
  perplexity = float(bottleneck.perplexity(jnp.asarray(histogram, jnp.float32)))
  assert 1 - 1e-4 <= perplexity <= np.sum(weights > 0) + 1e-4


@pytest.mark.parametrize('used', [1, 3, 8])
def test_perplexity_of_even_use_is_the_number_of_codes(used):
  histogram = jnp.where(jnp.arange(8) < used, 1 / used, 0.0)
  assert bottleneck.perplexity(histogram) == pytest.approx(used, rel=1e-5)
