"""Sample a token from logits: temperature, top-k, top-p and classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np

Real = jax.Array | np.floating | float  # a number that may be an argument of a compiled program


def filter_top_k(logits: jax.Array, top_k: int) -> jax.Array:
  """Set all but the `top_k` largest logits [..., V] to -inf; 0 keeps all. Ties with the smallest kept logit stay."""
  if top_k <= 0 or top_k >= logits.shape[-1]:
    return logits
  threshold = jax.lax.top_k(logits, top_k)[0][..., -1:]
  return jnp.where(logits < threshold, -jnp.inf, logits)


def filter_top_p(logits: jax.Array, top_p: Real) -> jax.Array:
  """Keep the smallest set of likeliest tokens whose probabilities sum to at least `top_p` (Holtzman et al. 2020).

  Args:
    logits: [..., V].
    top_p: the share of the probability to keep, above 0. The likeliest token always stays.

  Returns:
    [..., V]; the logits of the other tokens are -inf. Ties with the least likely kept token stay.
  """
  ordered = -jnp.sort(-logits, axis=-1)
  probs = jax.nn.softmax(ordered, axis=-1)
  before = jnp.cumsum(probs, axis=-1) - probs
  kept = (before < top_p).at[..., 0].set(True)  # the likeliest token stays even if top_p underflows to 0 in float32
  threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits < threshold, -jnp.inf, logits)


def guide(conditional: jax.Array, unconditional: jax.Array, scale: Real) -> jax.Array:
  """Classifier-free guidance (Ho and Salimans 2021, equation 6; for tokens Make-A-Scene, section 3.3).

  Args:
    conditional: logits [..., V] given the caption.
    unconditional: logits [..., V] given no caption or a negative prompt.
    scale: 1 gives the conditional logits, 0 the unconditional logits; above 1 exaggerates the caption's effect.

  Returns:
    [..., V]. Where either input is -inf, the result is the conditional logit.
  """
  possible = ~(jnp.isneginf(conditional) | jnp.isneginf(unconditional))
  # The difference of two -inf would be NaN. NaN logits stay NaN so that `check_finite` can report them.
  difference = jnp.where(possible, conditional, 0) - jnp.where(possible, unconditional, 0)
  return jnp.where(possible, unconditional + scale * difference, conditional)


def sample(
  keys: jax.Array,
  logits: jax.Array,
  temperature: Real,
  top_k: int = 0,
  top_p: Real | None = None,
) -> jax.Array:
  """Sample one token per row, int32 [B].

  Args:
    keys: typed PRNG keys [B], one per row, so that a row's token does not depend on the other rows.
    logits: [B, V].
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: how many of the likeliest tokens to sample from; 0 for all.
    top_p: the share of the probability to sample from, after temperature and top-k; None for all.
  """
  greedy = temperature == 0
  filtered = filter_top_k(logits / jnp.where(greedy, 1.0, temperature), top_k)
  if top_p is not None:
    filtered = filter_top_p(filtered, top_p)
  sampled = jax.vmap(jax.random.categorical)(keys, filtered)
  return jnp.where(greedy, jnp.argmax(logits, axis=-1), sampled).astype(jnp.int32)
