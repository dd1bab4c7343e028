"""The decode loop: whole sequences from any sequence model, inside one jitted loop with its cache."""

from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.models.sequence import SequenceModel
from dalle_jax.sampling.logits import sample


def row_keys(seed: jax.Array | int, index: jax.Array) -> jax.Array:
  """The typed keys [B] of the images or texts number index [B]: fold_in(key(seed), number)."""
  base = jax.random.key(seed)
  return jax.vmap(lambda i: jax.random.fold_in(base, i))(index)


def decode(
  model: SequenceModel, params: Any, prefix: jax.Array, keys: jax.Array, *, temperature: float = 1.0, top_k: int = 0
) -> jax.Array:
  """Continues token prefixes [B, P] to whole sequences.

  Args:
    model: any sequence model.
    params: its parameters.
    prefix: int32 [B, P], P < model.length.
    keys: typed PRNG keys [B]; the token at position t of row b is drawn with fold_in(keys[b], t).
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: tokens to choose among at each position; 0 for all.

  Returns:
    int32 [B, model.length].
  """
  params = model.decode_params(params)
  start = prefix.shape[1]
  tokens = jnp.pad(prefix.astype(jnp.int32), ((0, 0), (0, model.length - start)))
  cache, logits = model.prefill(params, prefix)

  def draw(position: jax.Array, logits: jax.Array) -> jax.Array:
    folded = jax.vmap(lambda key: jax.random.fold_in(key, position))(keys)
    return sample(folded, logits, temperature, top_k)

  def body(position: jax.Array, carry: tuple) -> tuple:
    tokens, cache, logits = carry
    token = draw(position, logits)
    tokens = tokens.at[:, position].set(token)
    cache, logits = model.step(params, cache, token)
    return tokens, cache, logits

  # The last token is drawn after the loop: nothing needs the logits that would follow it.
  last = model.length - 1
  tokens, _, logits = jax.lax.fori_loop(start, last, body, (tokens, cache, logits))
  return tokens.at[:, last].set(draw(jnp.asarray(last), logits))
