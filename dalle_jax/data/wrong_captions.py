"""Captions that are nearly right, as hard negatives for a contrastive model.

A model that meets other captions only at random need only count words: two that name the same things in another order,
or differ in a single word, hardly ever meet. So each caption gets a wrong one: with two of its parts exchanged
(Yuksekgonul et al. 2023, "When and why vision-language models behave like bags-of-words", section 5), or with one word
replaced. The training captions themselves tell what reads like a caption.
"""

import collections
import itertools
from collections.abc import Iterable

import numpy as np

MOST_WORDS = 4  # of a part that is exchanged
EXCHANGED = 2 / 3  # share of captions, of those where it can be done: order is learnt more slowly than words are
_EDGE = ''  # before the first word and after the last


class WrongCaptions:
  """Makes wrong captions of true ones. Picklable."""

  def __init__(self, captions: Iterable[str]):
    """Args: captions to learn from which words stand beside each other, and between which."""
    self._followers: set[tuple[str, str]] = set()
    self._between: dict[tuple[str, str], collections.Counter] = {}
    for caption in captions:
      words = _edged(caption)
      self._followers.update(itertools.pairwise(words))
      for left, word, right in zip(words, words[1:], words[2:], strict=False):
        self._between.setdefault((left, right), collections.Counter())[word] += 1

  def __call__(self, caption: str, rng: np.random.Generator) -> str:
    """A caption by exchange (two in three) or by replacement; by the other where one cannot be; or the caption itself.

    It may be true all the same: of what is beside something else, or by a word that means the same.
    """
    ways = (self.exchanged, self.replaced) if rng.random() < EXCHANGED else (self.replaced, self.exchanged)
    return next((wrong for way in ways if (wrong := way(caption, rng)) != caption), caption)

  def exchanged(self, caption: str, rng: np.random.Generator) -> str:
    """The caption with two parts of as many words exchanged; itself if there is none.

    Each number of words is equally likely, and each result of that number: whole descriptions change places as often as
    single words, although there are more of these.
    Where the parts begin and end, words stand beside each other as they did in some caption: colours change places with
    colours and not with sizes, and things with things.
    """
    edged, seen, by_size = _edged(caption), {' '.join(caption.split())}, []
    for size in range(1, MOST_WORDS + 1):
      found = sorted(set(self._exchanges(edged, size)) - seen)  # a longer part may begin or end alike
      seen.update(found)
      by_size += [found] if found else []
    if not by_size:
      return caption
    found = by_size[rng.integers(len(by_size))]
    return found[rng.integers(len(found))]

  def _exchanges(self, edged: list[str], size: int) -> Iterable[str]:
    count = len(edged) - 1
    for i in range(1, count - 2 * size + 1):
      for j in range(i + size, count - size + 1):
        if (edged[i - 1], edged[j]) in self._followers:  # few pass, and the rest takes longer
          changed = list(edged)
          changed[i : i + size], changed[j : j + size] = edged[j : j + size], edged[i : i + size]
          if all((changed[at - 1], changed[at]) in self._followers for at in (i + size, j, j + size)):
            yield ' '.join(changed[1:-1])

  def replaced(self, caption: str, rng: np.random.Generator) -> str:
    """The caption with one word replaced by another that stood between the same two; itself if there is none.

    Each word that can be replaced is equally likely to be, and each other as often as it stood there.
    """
    words = _edged(caption)
    places = []
    for place in range(1, len(words) - 1):
      counts = self._between.get((words[place - 1], words[place + 1]), {})
      others = sorted((word, count) for word, count in counts.items() if word != words[place])
      if others:
        places.append((place, others))
    if not places:
      return caption
    place, others = places[rng.integers(len(places))]
    bounds = np.cumsum([count for _, count in others])
    words[place] = others[np.searchsorted(bounds, rng.integers(bounds[-1]), side='right')][0]
    return ' '.join(words[1:-1])


def _edged(caption: str) -> list[str]:
  return [_EDGE, *caption.split(), _EDGE]
