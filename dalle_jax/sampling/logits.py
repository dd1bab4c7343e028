"""From logits to a token: temperature and top-k."""

import jax
import jax.numpy as jnp


def filter_top_k(logits: jax.Array, top_k: int) -> jax.Array:
  """Keeps the `top_k` largest of logits [..., V] (ties with the last one too), the rest become -inf; 0 keeps all."""
  if top_k <= 0 or top_k >= logits.shape[-1]:
    return logits
  threshold = jax.lax.top_k(logits, top_k)[0][..., -1:]
  return jnp.where(logits < threshold, -jnp.inf, logits)


def sample(keys: jax.Array, logits: jax.Array, temperature: float, top_k: int) -> jax.Array:
  """One token per row, int32 [B].

  Args:
    keys: typed PRNG keys [B], one per row, so that a row's token does not depend on its neighbours.
    logits: [B, V].
    temperature: 0 takes the likeliest token.
    top_k: tokens to choose among; 0 for all.
  """
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = filter_top_k(logits / temperature, top_k)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
