"""Causal self-attention over whole sequences, and over a cache one query at a time."""

import jax
import jax.numpy as jnp
import numpy as np


def causal_mask(length: int) -> np.ndarray:
  """Bool [length, length]: query t sees the keys 0..t."""
  return np.tril(np.ones((length, length), bool))


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | np.ndarray) -> jax.Array:
  """Softmax attention with float32 scores.

  Args:
    query: [B, T, N, H].
    key: [B, S, N, H].
    value: [B, S, N, H].
    mask: bool, broadcastable to [B, N, T, S]; True where the query sees the key.

  Returns:
    [B, T, N, H] in the dtype of `value`.
  """
  scores = jnp.einsum('BTNH,BSNH->BNTS', query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
  seen = jnp.broadcast_to(mask, scores.shape)
  weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(value.dtype)
  return jnp.einsum('BNTS,BSNH->BTNH', weights, value)


def attend_cached(
  query: jax.Array, key: jax.Array, value: jax.Array, cache: dict[str, jax.Array], index: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """One query against all keys up to its own.

  Args:
    query: [B, 1, N, H], like key and value: those of the token at `index`.
    key: see above.
    value: see above.
    cache: {'key': [B, S, N, H], 'value': [B, S, N, H]}, filled up to `index`.
    index: int32 scalar.

  Returns:
    The attention output [B, 1, N, H] and the cache with this token in it.
  """
  keys = jax.lax.dynamic_update_slice_in_dim(cache['key'], key, index, axis=1)
  values = jax.lax.dynamic_update_slice_in_dim(cache['value'], value, index, axis=1)
  seen = jnp.arange(keys.shape[1]) <= index
  return attend(query, keys, values, seen), {'key': keys, 'value': values}
