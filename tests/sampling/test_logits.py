import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dalle_jax.sampling.logits import filter_top_k, filter_top_p, guide, sample

# A few distinct values make ties common. Some tokens have logits of -inf before any filter.
LOGITS = hnp.arrays(np.float32, (3, 6), elements=st.sampled_from([-np.inf, -2.0, 0.0, 1.0, 1.5, 3.0]))


@given(LOGITS, st.integers(1, 5))
@settings(deadline=None)
def test_top_k_keeps_the_largest_logits_and_ties_with_the_smallest_of_them(logits, k):
  kept = np.asarray(filter_top_k(jnp.asarray(logits), k))
  for before, after in zip(logits, kept, strict=True):
    smallest_kept = np.sort(before)[-k]
    np.testing.assert_array_equal(after, np.where(before >= smallest_kept, before, -np.inf))


@pytest.mark.parametrize('k', [0, 6, 100])
def test_top_k_of_zero_or_at_least_the_vocabulary_changes_nothing(k):
  logits = jnp.arange(6.0)[None]
  assert filter_top_k(logits, k) is logits


@given(LOGITS, st.sampled_from([1e-40, 0.01, 0.3, 0.62, 0.9, 1.0]))
@settings(deadline=None)
def test_top_p_keeps_the_fewest_tokens_that_reach_the_share_and_ties(logits, p):
  logits = np.where(np.max(logits, axis=-1, keepdims=True) == -np.inf, 0, logits).astype(np.float32)
  kept = np.asarray(filter_top_p(jnp.asarray(logits), p))
  for before, after in zip(logits, kept, strict=True):
    probs = np.exp(before.astype(np.float64)) / np.exp(before.astype(np.float64)).sum()
    order = np.argsort(-before, kind='stable')
    needed = min(int(np.searchsorted(np.cumsum(probs[order]), p - 1e-6)) + 1, len(order))
    threshold = before[order[needed - 1]]
    np.testing.assert_array_equal(after, np.where(before >= threshold, before, -np.inf))


def test_guidance_extrapolates_and_keeps_impossible_tokens_impossible_and_nan_logits_nan():
  conditional, unconditional = np.array([[1.0, 2.0, -np.inf, 0.5]]), np.array([[0.0, 3.0, -np.inf, -np.inf]])
  np.testing.assert_allclose(guide(conditional, unconditional, 3.0), [[3.0, 0.0, -np.inf, 0.5]])
  np.testing.assert_allclose(guide(conditional, unconditional, 0.0)[:, :2], unconditional[:, :2])
  for broken in ((conditional * np.nan, unconditional), (conditional, unconditional * np.nan)):
    assert np.isnan(guide(*broken, 2.0)[0, 0])


def _keys(count):
  return jax.random.split(jax.random.key(0), count)


def test_temperature_zero_takes_the_likeliest_token():
  logits = jnp.array([[0.0, 3.0, 1.0], [-jnp.inf, -5.0, -jnp.inf]])
  tokens = sample(_keys(2), logits, 0.0, 0)
  assert tokens.dtype == jnp.int32
  np.testing.assert_array_equal(tokens, [1, 1])


@pytest.mark.parametrize(
  ('temperature', 'top_k', 'top_p'), [(1.0, 0, None), (0.5, 0, None), (2.0, 2, None), (1.0, 0, 0.7)]
)
def test_token_frequencies_match_the_filtered_softmax(temperature, top_k, top_p):
  count, logits = 20_000, np.array([0.0, 1.0, -1.0, 2.0, -np.inf])
  rows = jnp.broadcast_to(logits, (count, 5))
  tokens = jax.jit(lambda keys: sample(keys, rows, temperature, top_k, top_p))(_keys(count))
  weights = np.exp(logits / temperature)
  if top_k:
    weights[np.argsort(logits)[:-top_k]] = 0
  if top_p:
    weights[[0, 2, 4]] = 0  # the two likeliest tokens have probabilities 0.64 and 0.24
  observed = np.bincount(tokens, minlength=5) / count
  np.testing.assert_allclose(observed, weights / weights.sum(), atol=4.5 * np.sqrt(0.25 / count))


def test_the_token_of_a_row_depends_only_on_the_key_and_logits_of_that_row():
  keys, logits = _keys(4), jax.random.normal(jax.random.key(1), (4, 50))
  together = sample(keys, logits, 1.0, 0)
  for row in range(4):
    np.testing.assert_array_equal(sample(keys[row : row + 1], logits[row : row + 1], 1.0, 0)[0], together[row])
