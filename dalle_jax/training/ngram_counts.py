"""Estimate the table of an n-gram model from a corpus: one pass over the corpus, then one sort per order.

Notation: the n-gram (h, w) has the count c. Its context h has the total count C and U different followers. V is the
vocabulary size. p(w) given h is, by smoothing method:

- 'maximum_likelihood': c / C. A token that never followed a seen context has probability 0. An unseen context falls
  back to the next shorter one.
- 'add_k': (c + k) / (C + k V) for the longest context; uniform if that context is unseen (Lidstone).
- 'backoff': (c - D) / C if the n-gram was seen. The probability that this leaves is shared among the unseen tokens in
  proportion to their probabilities in the shorter context (Katz 1987, with absolute discounting).
- 'kneser_ney': (c - D) / C + D U / C * p(w | shorter context). In all but the longest contexts, c counts the different
  tokens that precede (h, w) instead of occurrences (Kneser and Ney 1995; interpolated: Chen and Goodman 1998).

The discount D is given, or estimated for each order as n1 / (n1 + 2 n2), where n1 and n2 are the numbers of n-grams
with the counts 1 and 2 (Ney et al. 1994). Unigrams are discounted only if some token never occurred; the uniform
distribution then takes the place of the shorter context.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from dalle_jax.config.models import MAX_ORDER, SMOOTHINGS


@dataclasses.dataclass(frozen=True)
class _Level:
  """The distinct k-grams of a corpus, sorted. M is their number.

  `parent` and `suffix` are indices into the level of the (k - 1)-grams; in level 1 they are zeros.
  """

  parent: np.ndarray  # [M] index of the first k - 1 tokens
  token: np.ndarray  # [M] the last token
  count: np.ndarray  # [M] number of occurrences
  suffix: np.ndarray  # [M] index of the last k - 1 tokens


def count(sequences: Iterable[np.ndarray], vocab_size: int, order: int, starts: bool = True) -> list[_Level]:
  """Count all k-grams with k <= order.

  Args:
    sequences: the corpus, arrays [T_i] of token ids; read once.
    vocab_size: number of token ids, 0 to vocab_size - 1.
    order: length of the longest n-grams.
    starts: whether to put order - 1 start tokens before each sequence, so that the model learns how sequences begin.
      Use False if sequences are cut from a text at arbitrary places.

  Returns:
    One level for each k from 1 to order. Start tokens have the id vocab_size.

  Raises:
    ValueError: the order is out of range, a token is not an id, or there are no sequences.
  """
  if not 1 <= order <= MAX_ORDER:
    raise ValueError(f'The order is {order}; it must lie in 1 to {MAX_ORDER} (config.model.order).')
  tokens, remaining = _joined(sequences, vocab_size, order - 1 if starts else 0)
  entries = tokens.astype(np.int64)  # at each position, the index of its (k - 1)-gram in the last level
  unigram_counts = np.bincount(entries, minlength=vocab_size + 1)
  ids = np.arange(vocab_size + 1)
  levels = [_Level(np.zeros_like(ids), ids, unigram_counts, np.zeros_like(ids))]
  for k in range(2, order + 1):
    positions = np.flatnonzero(remaining >= k)  # where a k-gram fits into its sequence
    keys = entries[positions] * (vocab_size + 1) + tokens[positions + k - 1]
    distinct, first, index, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    suffix = entries[positions[first] + 1]
    levels.append(_Level(distinct // (vocab_size + 1), distinct % (vocab_size + 1), counts, suffix))
    entries = np.full(len(tokens), -1, np.int64)
    entries[positions] = index
  return levels


def _joined(sequences: Iterable[np.ndarray], vocab_size: int, num_starts: int) -> tuple[np.ndarray, np.ndarray]:
  """Concatenate all sequences, each after its start tokens.

  Returns:
    The tokens [N], and for each of them the number of tokens from it to the end of its sequence [N], at most MAX_ORDER.
  """
  dtype = np.uint16 if vocab_size < 2**16 else np.int32
  padded = [np.empty(0, dtype)]
  remaining = [np.empty(0, np.uint8)]
  for sequence in sequences:
    sequence = np.asarray(sequence)
    if sequence.size and not (0 <= sequence.min() and sequence.max() < vocab_size):
      raise ValueError(
        f'A sequence holds ids from {sequence.min()} to {sequence.max()}; they must lie in 0 to {vocab_size - 1}.'
      )
    padded.append(np.concatenate([np.full(num_starts, vocab_size, dtype), sequence.astype(dtype)]))
    remaining.append(np.minimum(np.arange(len(padded[-1]), 0, -1), MAX_ORDER).astype(np.uint8))
  if len(padded) == 1:
    raise ValueError('The training data hold no sequence to count n-grams in.')
  return np.concatenate(padded), np.concatenate(remaining)


def estimate(
  levels: list[_Level], *, smoothing: str = 'kneser_ney', discount: float = 0.0, add_k: float = 0.0
) -> list[dict[str, np.ndarray]]:
  """Estimate the parameters of `models.ngram.Ngram`.

  Args:
    levels: result of `count`.
    smoothing: one of SMOOTHINGS.
    discount: D, or 0 to estimate it for each order.
    add_k: k of the smoothing 'add_k'.

  Raises:
    ValueError: the smoothing is unknown, or `discount` or `add_k` is out of range.
  """
  if smoothing not in SMOOTHINGS:
    raise ValueError(f'The smoothing is {smoothing!r}; allowed are {", ".join(SMOOTHINGS)} (config.model.smoothing).')
  if not 0 <= discount < 1:
    raise ValueError(f'The discount is {discount}; it must lie in [0, 1), and 0 estimates it (config.model.discount).')
  if smoothing == 'add_k' and add_k <= 0:
    raise ValueError(f'k of add_k is {add_k}; it must be above 0 (config.model.add_k).')
  vocab_size = len(levels[0].token) - 1
  table: list[dict[str, np.ndarray]] = []
  shorter = np.full(vocab_size + 1, 1 / vocab_size)  # probabilities of the n-grams in the level before
  for k, level in enumerate(levels, start=1):
    longest = k == len(levels)
    grams = _Grams(
      count=_counts(levels, k, distinct=smoothing == 'kneser_ney' and not longest),
      parent=level.parent,
      num_contexts=1 if k == 1 else len(levels[k - 2].token),
      lower=shorter[level.suffix],
    )
    if smoothing == 'maximum_likelihood':
      prob, backoff = _maximum_likelihood(grams)
    elif smoothing == 'add_k':
      prob, backoff = _add_k(grams, add_k if longest else np.inf, vocab_size)
    else:
      level_discount = discount or estimated_discount(grams.count)
      if k == 1 and (grams.count[:vocab_size] > 0).all():
        level_discount = 0.0
      prob, backoff = (_kneser_ney if smoothing == 'kneser_ney' else _back_off)(grams, level_discount)
    if k == 1:  # tokens that never occurred back off to the uniform distribution
      prob = np.where(grams.count > 0, prob, backoff[0] / vocab_size)
    else:
      table[-1]['first'] = np.searchsorted(level.parent, np.arange(grams.num_contexts + 1)).astype(np.int32)
      table[-1]['log_backoff'] = _log(backoff)
    shorter = np.where(level.token == vocab_size, 0.0, prob)
    table.append({'token': level.token.astype(np.int32), 'log_prob': _log(shorter)})
  return table


@dataclasses.dataclass(frozen=True)
class _Grams:
  """The M n-grams of one order, as input for smoothing."""

  count: np.ndarray  # [M] float; 0 for n-grams that end in a start token
  parent: np.ndarray  # [M] index of the context
  num_contexts: int
  lower: np.ndarray  # [M] p(last token | the context without its first token)

  def of_context(self, values: np.ndarray) -> np.ndarray:
    """Sum `values` [M] over the n-grams of each context: [num_contexts]."""
    return np.bincount(self.parent, weights=values, minlength=self.num_contexts)

  @property
  def total(self) -> np.ndarray:
    """Total count of each context, [num_contexts]."""
    return self.of_context(self.count)

  @property
  def followers(self) -> np.ndarray:
    """Number of different followers of each context, [num_contexts]."""
    return self.of_context(self.count > 0)


def _counts(levels: list[_Level], k: int, distinct: bool) -> np.ndarray:
  """Occurrences of each k-gram, or the number of different tokens that precede it if `distinct`."""
  level = levels[k - 1]
  count = np.bincount(levels[k].suffix, minlength=len(level.token)) if distinct else level.count
  return np.where(level.token == len(levels[0].token) - 1, 0, count).astype(np.float64)


def estimated_discount(count: np.ndarray) -> float:
  """n1 / (n1 + 2 n2) (Ney et al. 1994), clipped to [0.05, 0.95] because n1 or n2 may be 0."""
  once, twice = np.sum(count == 1), np.sum(count == 2)
  return float(np.clip(once / max(once + 2 * twice, 1), 0.05, 0.95))


def _over(a: np.ndarray, b: np.ndarray, otherwise: float) -> np.ndarray:
  """a / b, or `otherwise` where b is 0."""
  return np.where(b > 0, a / np.where(b > 0, b, 1), otherwise)


# Each smoothing function returns the probabilities of the n-grams [M] and the backoff weights of the contexts
# [num_contexts].


def _maximum_likelihood(grams: _Grams) -> tuple[np.ndarray, np.ndarray]:
  prob = _over(grams.count, grams.total[grams.parent], 0.0)
  return prob, np.where(grams.total > 0, 0.0, 1.0)


def _add_k(grams: _Grams, k: float, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Lidstone smoothing. An infinite k, used for all but the longest contexts, gives a uniform distribution."""
  if np.isinf(k):
    return np.full(len(grams.count), 1 / vocab_size), np.ones(grams.num_contexts)
  total = grams.total + k * vocab_size
  return (grams.count + k) / total[grams.parent], k * vocab_size / total


def _kneser_ney(grams: _Grams, discount: float) -> tuple[np.ndarray, np.ndarray]:
  total = grams.total
  backoff = _over(discount * grams.followers, total, 1.0)
  prob = _over(np.maximum(grams.count - discount, 0), total[grams.parent], 0.0)
  return prob + backoff[grams.parent] * grams.lower, backoff


def _back_off(grams: _Grams, discount: float) -> tuple[np.ndarray, np.ndarray]:
  total, seen = grams.total, grams.count > 0
  rest = 1 - grams.of_context(grams.lower * seen)  # probability of the unseen tokens in the shorter context
  full = rest < 1e-9  # every token was seen in this context, so no probability is reserved for unseen ones
  backoff = np.where(full, 0.0, _over(_over(discount * grams.followers, total, 0.0), np.where(full, 1, rest), 0.0))
  backoff = np.where(total > 0, backoff, 1.0)
  discounts = np.where(full[grams.parent], 0.0, discount)
  return _over(np.maximum(grams.count - discounts, 0), total[grams.parent], 0.0), backoff


def _log(x: np.ndarray) -> np.ndarray:
  return np.log(x, where=x > 0, out=np.full(x.shape, -np.inf)).astype(np.float32)
