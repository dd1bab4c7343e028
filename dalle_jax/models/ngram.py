"""N-grams as a sequence model (DALL-E Explained part 2; Shannon 1948; Chen and Goodman 1998).

Whatever the smoothing, a model of order n is a table of n-grams in back-off form, as in the ARPA format:

    p(w | h) = p of the n-gram (h, w) where it was seen, else backoff(h) * p(w | h without its first token),

with backoff 1 for contexts that were never seen. `training.ngram_counts` makes the table from a corpus.

The table is a trie, level by level. Level k holds the k-grams, sorted by their first k - 1 tokens and then by the last:

    token [M_k]        the last token
    log_prob [M_k]     ln p(last token | the others)
    first [M_k + 1]    where the (k+1)-grams that begin with it start in level k + 1   (not in the last level)
    log_backoff [M_k]  ln backoff of the k-gram as a context                           (not in the last level)

The first level holds every id, so that token t is its entry t, and after them the id `vocab_size`, the start: a
sequence is read as if order - 1 of them stood before it. A start is never predicted.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.models.tokens import WindowModel, windows

NOT_SEEN = -1


@dataclasses.dataclass(frozen=True)
class Ngram(WindowModel):
  """The order-n model as a sequence model (see `models.sequence`); its parameters are the table's levels."""

  vocab_size: int
  length: int
  order: int

  def init(self, key: jax.Array) -> list[dict[str, jax.Array]]:
    """The table of no corpus: all tokens are equally likely."""
    del key
    size = self.vocab_size + 1
    even = jnp.full(size, -jnp.log(jnp.float32(self.vocab_size))).at[-1].set(-jnp.inf)
    table = self.empty([size] + [0] * (self.order - 1))
    table[0] |= {'token': jnp.arange(size, dtype=jnp.int32), 'log_prob': even}
    return table

  def empty(self, sizes: Sequence[int]) -> list[dict[str, jax.Array]]:
    """A table of zeros with so many entries of each order."""
    levels = []
    for k, size in enumerate(sizes, start=1):
      levels.append({'token': jnp.zeros(size, jnp.int32), 'log_prob': jnp.zeros(size)})
      if k < self.order:
        levels[-1] |= {'first': jnp.zeros(size + 1, jnp.int32), 'log_backoff': jnp.zeros(size)}
    return levels

  def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
    """ln p [B, T, V] of each token of tokens [B, T] given those before it."""
    contexts = windows(tokens, self.order - 1, self.vocab_size)
    return jax.lax.map(lambda row: self.of_windows(params, row), contexts)

  def of_windows(self, params: Any, window: jax.Array) -> jax.Array:
    return jax.vmap(lambda context: self._of_context(params, context))(window)

  def _of_context(self, params: Any, context: jax.Array) -> jax.Array:
    """From the shortest context to the longest: back off everywhere, then write in what was seen."""
    found = params[0]['log_prob'][: self.vocab_size]
    for k in range(1, self.order):
      entry = _find(params, context[self.order - 1 - k :])
      known, entry = entry != NOT_SEEN, jnp.maximum(entry, 0)
      if not params[k]['token'].shape[0]:
        break
      level = params[k - 1]
      begin, end = level['first'][entry], level['first'][entry + 1]
      child = begin + jnp.arange(self.vocab_size + 1)
      is_child = known & (child < end)
      child = jnp.where(is_child, child, 0)
      # A start, and what is no child, is written outside of the array, which drops it.
      target = jnp.where(is_child, params[k]['token'][child], self.vocab_size)
      found = found + jnp.where(known, level['log_backoff'][entry], 0.0)
      found = found.at[target].set(params[k]['log_prob'][child], mode='drop')
    return found


def _find(params: Any, tokens: jax.Array) -> jax.Array:
  """The entry of the k-gram `tokens` [k] in level k, or NOT_SEEN: a binary search in each level."""
  entry = tokens[0]
  for k in range(1, tokens.shape[0]):
    level, known = params[k], entry != NOT_SEEN
    first = params[k - 1]['first']
    begin, end = first[jnp.maximum(entry, 0)], first[jnp.maximum(entry, 0) + 1]
    at = _search(level['token'], begin, end, tokens[k])
    here = known & (at < end)
    here &= level['token'][jnp.minimum(at, level['token'].shape[0] - 1)] == tokens[k]
    entry = jnp.where(here, at, NOT_SEEN)
  return entry


def _search(values: jax.Array, begin: jax.Array, end: jax.Array, wanted: jax.Array) -> jax.Array:
  """The first index in [begin, end) whose value, ascending there, is `wanted` or more; `end` if there is none."""

  def halve(_: int, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    begin, end = interval
    middle = (begin + end) // 2
    below = values[jnp.minimum(middle, values.shape[0] - 1)] < wanted
    empty = begin >= end
    return jnp.where(~empty & below, middle + 1, begin), jnp.where(empty | below, end, middle)

  return jax.lax.fori_loop(0, values.shape[0].bit_length(), halve, (begin, end))[0]
