import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.models import attention

BATCH, LENGTH, HEADS, WIDTH = 2, 5, 3, 4


@pytest.fixture
def qkv():
  keys = jax.random.split(jax.random.key(0), 3)
  return [jax.random.normal(key, (BATCH, LENGTH, HEADS, WIDTH)) for key in keys]


def _by_hand(query, key, value):
  """Causal attention in float64, one query at a time."""
  out = np.zeros(query.shape)
  for b, t, n in np.ndindex(query.shape[:3]):
    scores = np.array([query[b, t, n] @ key[b, s, n] for s in range(t + 1)]) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max())
    out[b, t, n] = weights @ value[b, : t + 1, n] / weights.sum()
  return out


def test_attend_is_causal_softmax_attention(qkv):
  out = attention.attend(*qkv, attention.causal_mask(LENGTH))
  np.testing.assert_allclose(out, _by_hand(*(np.asarray(x, np.float64) for x in qkv)), atol=1e-5)


def test_attend_takes_masks_per_example(qkv):
  mask = np.broadcast_to(attention.causal_mask(LENGTH), (BATCH, 1, LENGTH, LENGTH)).copy()
  mask[1] = np.eye(LENGTH, dtype=bool)  # sees itself alone
  out = attention.attend(*qkv, mask)
  np.testing.assert_allclose(out[1], qkv[2][1], atol=1e-6)
  np.testing.assert_allclose(out[0], attention.attend(*qkv, attention.causal_mask(LENGTH))[0], atol=1e-6)


def test_attend_keeps_the_values_dtype(qkv):
  half = [x.astype(jnp.bfloat16) for x in qkv]
  out = attention.attend(*half, attention.causal_mask(LENGTH))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), attention.attend(*qkv, attention.causal_mask(LENGTH)), atol=0.05)


def test_cached_attention_equals_dense_whatever_lies_in_unfilled_slots(qkv):
  query, key, value = qkv
  dense = attention.attend(query, key, value, attention.causal_mask(LENGTH))
  cache = {'key': jnp.full_like(key, 50.0), 'value': jnp.full_like(value, 1e6)}
  step = jax.jit(attention.attend_cached)
  for t in range(LENGTH):
    now = slice(t, t + 1)
    out, cache = step(query[:, now], key[:, now], value[:, now], cache, jnp.asarray(t))
    np.testing.assert_allclose(out, dense[:, now], atol=1e-6)
  np.testing.assert_array_equal(cache['key'], key)
  np.testing.assert_array_equal(cache['value'], value)
