"""Make nearly right captions as hard negatives for a contrastive model.

Two captions in a random batch seldom have the same words in another order, or differ in a single word. A contrastive
model that trains on such batches can therefore treat captions as bags of words. To prevent this, we make a wrong
version of each caption, in one of two ways:
  * Exchange two of its phrases (Yuksekgonul et al. 2023, "When and why vision-language models behave like
    bags-of-words", section 5).
  * Replace one of its words.

Adjacent words of the result must also be adjacent in some training caption, so that the result reads like a caption.
"""

import collections
import itertools
from collections.abc import Iterable, Mapping

import numpy as np

MOST_WORDS = 4  # maximum words in an exchanged phrase
# Probability of exchanging phrases if both ways are possible. Models learn word order more slowly than words.
EXCHANGED = 2 / 3
_EDGE = ''  # marks the start and the end of a caption


class WrongCaptions:
  """Makes wrong captions from true ones. Picklable."""

  def __init__(self, captions: Iterable[str]):
    """Records which words are adjacent, and which words occur between two others.

    Args:
      captions: the training captions.
    """
    self._adjacent: set[tuple[str, str]] = set()
    self._between: dict[tuple[str, str], collections.Counter[str]] = {}
    for caption in captions:
      words = _with_edges(caption)
      self._adjacent.update(itertools.pairwise(words))
      for left, word, right in zip(words, words[1:], words[2:], strict=False):
        self._between.setdefault((left, right), collections.Counter())[word] += 1

  def __call__(self, caption: str, rng: np.random.Generator) -> str:
    """Returns a wrong caption: by an exchange with probability EXCHANGED, otherwise by a replacement.

    If one way is impossible, the other is used. If both are, the caption itself is returned. A result can still be
    true, e.g. after exchanging the two sides of 'beside', or after replacing a word by a synonym.
    """
    ways = (self.exchanged, self.replaced) if rng.random() < EXCHANGED else (self.replaced, self.exchanged)
    return next((wrong for way in ways if (wrong := way(caption, rng)) != caption), caption)

  def exchanged(self, caption: str, rng: np.random.Generator) -> str:
    """Returns the caption with two phrases of equal length exchanged, or unchanged if no exchange is possible.

    The phrase length is sampled uniformly from the possible lengths, then the result uniformly from the exchanges of
    that length. Long phrases are therefore exchanged as often as single words, although fewer exchanges are possible.

    At the edges of the exchanged phrases, adjacent words must be adjacent in some training caption. So colours are
    exchanged with colours rather than with sizes, and nouns with nouns.
    """
    words, seen, results_by_length = _with_edges(caption), {' '.join(caption.split())}, []
    for length in range(1, MOST_WORDS + 1):
      # Exchanging longer phrases can give a known result, if the phrases start or end with the same words.
      results = sorted(set(self._exchanges(words, length)) - seen)
      seen.update(results)
      results_by_length += [results] if results else []
    if not results_by_length:
      return caption
    results = results_by_length[rng.integers(len(results_by_length))]
    return results[rng.integers(len(results))]

  def _exchanges(self, words: list[str], length: int) -> Iterable[str]:
    """Yields the captions in which two phrases of `length` words are exchanged and all adjacent words are known."""
    end = len(words) - 1
    for i in range(1, end - 2 * length + 1):
      for j in range(i + length, end - length + 1):
        if (words[i - 1], words[j]) in self._adjacent:  # checked first: it is cheap and rejects most pairs
          changed = list(words)
          changed[i : i + length], changed[j : j + length] = words[j : j + length], words[i : i + length]
          if all((changed[k - 1], changed[k]) in self._adjacent for k in (i + length, j, j + length)):
            yield ' '.join(changed[1:-1])

  def replaced(self, caption: str, rng: np.random.Generator) -> str:
    """Returns the caption with one word replaced, or unchanged if no replacement is possible.

    The new word must occur between the same two neighbours in a training caption. The position is sampled uniformly
    from the replaceable ones, and the new word in proportion to its frequency between these neighbours.
    """
    words = _with_edges(caption)
    options = []
    for position in range(1, len(words) - 1):
      counts: Mapping[str, int] = self._between.get((words[position - 1], words[position + 1]), {})
      candidates = sorted((word, count) for word, count in counts.items() if word != words[position])
      if candidates:
        options.append((position, candidates))
    if not options:
      return caption
    position, candidates = options[rng.integers(len(options))]
    cumulative = np.cumsum([count for _, count in candidates])
    words[position] = candidates[np.searchsorted(cumulative, rng.integers(cumulative[-1]), side='right')][0]
    return ' '.join(words[1:-1])


def _with_edges(caption: str) -> list[str]:
  return [_EDGE, *caption.split(), _EDGE]
