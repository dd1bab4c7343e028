"""From a corpus to the table of an n-gram model: one pass over the source, then one sort for each order.

Smoothing, for the n-gram (h, w) with count c, in a context with total count C and U different followers:

- 'maximum_likelihood': c / C. What never followed a seen context is impossible; an unseen context is shortened.
- 'add_k': (c + k) / (C + k V) for the longest context, and uniform where it was never seen (Lidstone).
- 'backoff': (c - D) / C if seen, else what that leaves, shared among the other tokens as the shorter context says
  (Katz 1987, with absolute discounting).
- 'kneser_ney': (c - D) / C + D U / C * p(w | shorter context); in all but the longest contexts c counts the different
  tokens before (h, w) in place of occurrences (Kneser and Ney 1995; interpolated: Chen and Goodman 1998).

D is n1 / (n1 + 2 n2) for each order, where n1 and n2 n-grams have the count 1 and 2 (Ney et al. 1994), or is given.
Single tokens are discounted, in favour of all tokens alike, only where some token never occurred.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from dalle_jax.config.models import MAX_ORDER, SMOOTHINGS


@dataclasses.dataclass(frozen=True)
class _Level:
  """The k-grams of a corpus, sorted."""

  parent: np.ndarray  # [M] entry of the first k - 1 tokens in the level before; level 1: zeros
  token: np.ndarray  # [M] the last token
  count: np.ndarray  # [M] occurrences
  suffix: np.ndarray  # [M] entry of the last k - 1 tokens in the level before


def count(sequences: Iterable[np.ndarray], vocab_size: int, order: int, starts: bool = True) -> list[_Level]:
  """Counts all k-grams, k <= order, in sequences [T_i] of ids, read once.

  Args:
    sequences: the corpus.
    vocab_size: ids lie below.
    order: length of the longest n-grams.
    starts: whether order - 1 starts stand before each sequence, which the model sees at a sequence's beginning. Without
      them it knows nothing of beginnings, as is right where sequences are cut from a text at any place.

  Raises:
    ValueError: an order out of range, a token that is no id, or no sequence at all.
  """
  if not 1 <= order <= MAX_ORDER:
    raise ValueError(f'The order is {order}; it must lie in 1 to {MAX_ORDER}.')
  tokens, left = _joined(sequences, vocab_size, order - 1 if starts else 0)
  entries = tokens.astype(np.int64)
  present = np.bincount(entries, minlength=vocab_size + 1)
  every = np.arange(vocab_size + 1)
  levels = [_Level(np.zeros_like(every), every, present, np.zeros_like(every))]
  for k in range(2, order + 1):
    whole = left >= k  # the k-gram that starts here ends within its sequence
    begins = np.flatnonzero(whole)
    keys = entries[begins] * (vocab_size + 1) + tokens[begins + k - 1]
    found, where, index, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    suffix = entries[begins[where] + 1]
    levels.append(_Level(found // (vocab_size + 1), found % (vocab_size + 1), counts, suffix))
    entries = np.full(len(tokens), -1, np.int64)
    entries[begins] = index
  return levels


def _joined(sequences: Iterable[np.ndarray], vocab_size: int, num_starts: int) -> tuple[np.ndarray, np.ndarray]:
  """All sequences one after another, each with its starts, and for each token how many there are from it to its end."""
  dtype = np.uint16 if vocab_size < 2**16 else np.int32
  parts = [np.empty(0, dtype)]
  left = [np.empty(0, np.uint8)]
  for sequence in sequences:
    sequence = np.asarray(sequence)
    if sequence.size and not (0 <= sequence.min() and sequence.max() < vocab_size):
      raise ValueError(f'A sequence holds ids from {sequence.min()} to {sequence.max()}; there are {vocab_size}.')
    parts.append(np.concatenate([np.full(num_starts, vocab_size, dtype), sequence.astype(dtype)]))
    left.append(np.minimum(np.arange(len(parts[-1]), 0, -1), MAX_ORDER).astype(np.uint8))
  if len(parts) == 1:
    raise ValueError('There is no sequence to count n-grams in.')
  return np.concatenate(parts), np.concatenate(left)


def estimate(
  levels: list[_Level], *, smoothing: str = 'kneser_ney', discount: float = 0.0, add_k: float = 0.0
) -> list[dict[str, np.ndarray]]:
  """The parameters of `models.ngram.Ngram`.

  Args:
    levels: from `count`.
    smoothing: one of SMOOTHINGS.
    discount: D; 0: estimated for each order.
    add_k: k of 'add_k'.

  Raises:
    ValueError: an unknown smoothing, or a number that it cannot work with.
  """
  if smoothing not in SMOOTHINGS:
    raise ValueError(f'The smoothing is {smoothing!r}; allowed are {", ".join(SMOOTHINGS)}.')
  if not 0 <= discount < 1:
    raise ValueError(f'The discount is {discount}; it must lie in [0, 1), and 0 estimates it.')
  if smoothing == 'add_k' and add_k <= 0:
    raise ValueError(f'k of add_k is {add_k}; it must be above 0.')
  vocab_size = len(levels[0].token) - 1
  table: list[dict[str, np.ndarray]] = []
  shorter = np.full(vocab_size + 1, 1 / vocab_size)  # p of the entries one token shorter
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
      used = discount or estimated_discount(grams.count)
      if k == 1 and (grams.count[:vocab_size] > 0).all():
        used = 0.0
      prob, backoff = (_kneser_ney if smoothing == 'kneser_ney' else _back_off)(grams, used)
    if k == 1:  # tokens that never occurred back off to all alike
      prob = np.where(grams.count > 0, prob, backoff[0] / vocab_size)
    else:
      table[-1]['first'] = np.searchsorted(level.parent, np.arange(grams.num_contexts + 1)).astype(np.int32)
      table[-1]['log_backoff'] = _log(backoff)
    shorter = np.where(level.token == vocab_size, 0.0, prob)
    table.append({'token': level.token.astype(np.int32), 'log_prob': _log(shorter)})
  return table


@dataclasses.dataclass(frozen=True)
class _Grams:
  """The n-grams of one order, as smoothing sees them."""

  count: np.ndarray  # [M] float; 0 for those that end in a start
  parent: np.ndarray  # [M] number of the context
  num_contexts: int
  lower: np.ndarray  # [M] p(last token | the context without its first token)

  def of_context(self, values: np.ndarray) -> np.ndarray:
    """Sums over the n-grams of each context, [num_contexts]."""
    return np.bincount(self.parent, weights=values, minlength=self.num_contexts)

  @property
  def total(self) -> np.ndarray:
    return self.of_context(self.count)

  @property
  def followers(self) -> np.ndarray:
    return self.of_context(self.count > 0)


def _counts(levels: list[_Level], k: int, distinct: bool) -> np.ndarray:
  """How often each k-gram occurs, or after how many different tokens."""
  level = levels[k - 1]
  count = np.bincount(levels[k].suffix, minlength=len(level.token)) if distinct else level.count
  return np.where(level.token == len(levels[0].token) - 1, 0, count).astype(np.float64)


def estimated_discount(count: np.ndarray) -> float:
  """n1 / (n1 + 2 n2) (Ney et al. 1994), kept within 0.05 to 0.95 for corpora in which one of the two is 0."""
  once, twice = np.sum(count == 1), np.sum(count == 2)
  return float(np.clip(once / max(once + 2 * twice, 1), 0.05, 0.95))


def _over(a: np.ndarray, b: np.ndarray, otherwise: float) -> np.ndarray:
  """a / b, and `otherwise` where b is 0."""
  return np.where(b > 0, a / np.where(b > 0, b, 1), otherwise)


def _maximum_likelihood(grams: _Grams) -> tuple[np.ndarray, np.ndarray]:
  prob = _over(grams.count, grams.total[grams.parent], 0.0)
  return prob, np.where(grams.total > 0, 0.0, 1.0)


def _add_k(grams: _Grams, k: float, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """With k infinite, as for all but the longest contexts, uniform."""
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
  rest = 1 - grams.of_context(grams.lower * seen)  # of the shorter context's distribution, for what was not seen
  full = rest < 1e-9  # every token was seen here: there is nothing to save for
  backoff = np.where(full, 0.0, _over(_over(discount * grams.followers, total, 0.0), np.where(full, 1, rest), 0.0))
  backoff = np.where(total > 0, backoff, 1.0)
  taken = np.where(full[grams.parent], 0.0, discount)
  return _over(np.maximum(grams.count - taken, 0), total[grams.parent], 0.0), backoff


def _log(x: np.ndarray) -> np.ndarray:
  return np.log(x, where=x > 0, out=np.full(x.shape, -np.inf)).astype(np.float32)
