"""N-gram models as sequence models (DALL-E Explained part 2; Shannon 1948; Chen and Goodman 1998).

With every smoothing method, a model of order n is a table of k-grams, k = 1..n, in back-off form as in the ARPA format:

    p(w | h) = p from the table, if the corpus contains the n-gram (h, w)
    p(w | h) = backoff(h) * p(w | h without its first token), otherwise

backoff(h) is 1 for contexts h that the corpus does not contain. `training.ngram_counts` estimates the table.

The table is stored as a trie, level by level. Level k holds the M_k k-grams, sorted by their first k - 1 tokens and
then by their last token. Its arrays:

    token [M_k]        last token of the k-gram
    log_prob [M_k]     ln p(last token | first k - 1 tokens)
    first [M_k + 1]    where the continuations of the k-gram start in level k + 1; absent in the last level
    log_backoff [M_k]  ln backoff(k-gram); absent in the last level

The first level holds all token ids, so that entry t is token t, followed by the start token with the id `vocab_size`.
The model reads a sequence as if order - 1 start tokens preceded it. It never predicts a start token.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.models.tokens import WindowModel, windows

NOT_SEEN = -1  # the entry of k-grams that are not in the table


@dataclasses.dataclass(frozen=True)
class Ngram(WindowModel):
  """An n-gram model of the given order (see `models.sequence` for the interface).

  The parameters are the levels of the table: a list of dicts of arrays.
  """

  vocab_size: int
  length: int
  order: int

  def init(self, key: jax.Array) -> list[dict[str, jax.Array]]:
    """The table of an empty corpus: all tokens are equally likely."""
    del key
    size = self.vocab_size + 1
    uniform = jnp.full(size, -jnp.log(jnp.float32(self.vocab_size))).at[-1].set(-jnp.inf)
    table = self.empty([size] + [0] * (self.order - 1))
    table[0] |= {'token': jnp.arange(size, dtype=jnp.int32), 'log_prob': uniform}
    return table

  def empty(self, sizes: Sequence[int]) -> list[dict[str, jax.Array]]:
    """A table of zeros; `sizes` is the number of entries of each level."""
    levels = []
    for k, size in enumerate(sizes, start=1):
      levels.append({'token': jnp.zeros(size, jnp.int32), 'log_prob': jnp.zeros(size)})
      if k < self.order:
        levels[-1] |= {'first': jnp.zeros(size + 1, jnp.int32), 'log_backoff': jnp.zeros(size)}
    return levels

  def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
    """Log-probabilities [B, T, V], in nats: entry [:, t] is the distribution of token t given tokens[:, :t]."""
    contexts = windows(tokens, self.order - 1, self.vocab_size)
    return jax.lax.map(lambda row: self.of_windows(params, row), contexts)

  def of_windows(self, params: Any, window: jax.Array) -> jax.Array:
    return jax.vmap(lambda context: self._of_context(params, context))(window)

  def _of_context(self, params: Any, context: jax.Array) -> jax.Array:
    """Log-probabilities [V] of the token after a context [order - 1].

    The contexts grow from the shortest to the longest. For each context we back off for all tokens, then overwrite the
    tokens that the corpus contains after this context.
    """
    log_probs = params[0]['log_prob'][: self.vocab_size]
    for k in range(1, self.order):
      entry = _find(params, context[self.order - 1 - k :])
      seen, entry = entry != NOT_SEEN, jnp.maximum(entry, 0)
      if not params[k]['token'].shape[0]:
        break
      level = params[k - 1]
      begin, end = level['first'][entry], level['first'][entry + 1]
      child = begin + jnp.arange(self.vocab_size + 1)
      is_child = seen & (child < end)
      child = jnp.where(is_child, child, 0)
      # The index `vocab_size` is out of bounds, so `mode='drop'` skips start tokens and entries that are not children.
      target = jnp.where(is_child, params[k]['token'][child], self.vocab_size)
      log_probs = log_probs + jnp.where(seen, level['log_backoff'][entry], 0.0)
      log_probs = log_probs.at[target].set(params[k]['log_prob'][child], mode='drop')
    return log_probs


def _find(params: Any, tokens: jax.Array) -> jax.Array:
  """The entry of the k-gram `tokens` [k] in level k, or NOT_SEEN. Runs one binary search in each level."""
  entry = tokens[0]
  for k in range(1, tokens.shape[0]):
    level, seen = params[k], entry != NOT_SEEN
    first = params[k - 1]['first']
    begin, end = first[jnp.maximum(entry, 0)], first[jnp.maximum(entry, 0) + 1]
    child = _search(level['token'], begin, end, tokens[k])
    seen &= child < end
    seen &= level['token'][jnp.minimum(child, level['token'].shape[0] - 1)] == tokens[k]
    entry = jnp.where(seen, child, NOT_SEEN)
  return entry


def _search(values: jax.Array, begin: jax.Array, end: jax.Array, target: jax.Array) -> jax.Array:
  """The first index in [begin, end) with a value of at least `target`; `end` if there is none.

  The values must ascend within [begin, end).
  """

  def halve(_: int, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    begin, end = interval
    middle = (begin + end) // 2
    below = values[jnp.minimum(middle, values.shape[0] - 1)] < target
    empty = begin >= end
    return jnp.where(~empty & below, middle + 1, begin), jnp.where(empty | below, end, middle)

  return jax.lax.fori_loop(0, values.shape[0].bit_length(), halve, (begin, end))[0]
