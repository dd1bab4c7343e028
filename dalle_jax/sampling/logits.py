"""From logits to a token: temperature, top-k, top-p, guidance."""

import jax
import jax.numpy as jnp


def filter_top_k(logits: jax.Array, top_k: int) -> jax.Array:
  """Keeps the `top_k` largest of logits [..., V] (ties with the last one too), the rest become -inf; 0 keeps all."""
  if top_k <= 0 or top_k >= logits.shape[-1]:
    return logits
  threshold = jax.lax.top_k(logits, top_k)[0][..., -1:]
  return jnp.where(logits < threshold, -jnp.inf, logits)


def filter_top_p(logits: jax.Array, top_p: jax.Array | float) -> jax.Array:
  """Keeps the fewest of the likeliest tokens whose probabilities sum to `top_p` or more (Holtzman et al. 2020).

  Args:
    logits: [..., V]; what is cut becomes -inf, ties with the last token kept stay.
    top_p: above 0; the likeliest token is kept in any case.
  """
  ordered = -jnp.sort(-logits, axis=-1)
  probs = jax.nn.softmax(ordered, axis=-1)
  before = jnp.cumsum(probs, axis=-1) - probs
  kept = (before < top_p).at[..., 0].set(True)  # also where top_p is so small that it is 0 in 32 bits
  threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits < threshold, -jnp.inf, logits)


def guide(conditional: jax.Array, unconditional: jax.Array, scale: jax.Array | float) -> jax.Array:
  """Classifier-free guidance (Ho and Salimans 2021, equation 6; for tokens Make-A-Scene, section 3.3).

  Args:
    conditional: logits [..., V] given the caption.
    unconditional: the same given no caption, or one to keep away from.
    scale: 1 gives the conditional logits, 0 the unconditional ones, above 1 exaggerates what the caption changes.

  Returns:
    [..., V]; tokens that are impossible given the caption stay impossible.
  """
  both = ~(jnp.isneginf(conditional) | jnp.isneginf(unconditional))
  # Where one of them is impossible the difference would not be a number. What is none already stays so, to be found.
  difference = jnp.where(both, conditional, 0) - jnp.where(both, unconditional, 0)
  return jnp.where(both, unconditional + scale * difference, conditional)


def sample(
  keys: jax.Array,
  logits: jax.Array,
  temperature: jax.Array | float,
  top_k: int = 0,
  top_p: jax.Array | float | None = None,
) -> jax.Array:
  """One token per row, int32 [B].

  Args:
    keys: typed PRNG keys [B], one per row, so that a row's token does not depend on its neighbours.
    logits: [B, V].
    temperature: 0 takes the likeliest token.
    top_k: tokens to choose among; 0 for all.
    top_p: share of the probability to choose among, after temperature and top-k; None for all.
  """
  greedy = temperature == 0
  kept = filter_top_k(logits / jnp.where(greedy, 1.0, temperature), top_k)
  if top_p is not None:
    kept = filter_top_p(kept, top_p)
  drawn = jax.vmap(jax.random.categorical)(keys, kept)
  return jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
