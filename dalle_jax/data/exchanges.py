"""Captions that are nearly right: two parts of a caption exchanged, as hard negatives for a contrastive model.

A model that meets other captions only at random need only count words: two that name the same things in another order
hardly ever meet. An exchanged caption has all the words of the true one (Yuksekgonul et al. 2023, "When and why
vision-language models behave like bags-of-words", section 5).
"""

import itertools
from collections.abc import Iterable

import numpy as np

MOST_WORDS = 4  # of a part
_EDGE = ''  # before the first word and after the last


class Exchanges:
  """Exchanges two parts of a caption, of as many words each, so that it still reads like one. Picklable."""

  def __init__(self, captions: Iterable[str]):
    """Args: captions to learn from which words follow each other."""
    edged = ([_EDGE, *caption.split(), _EDGE] for caption in captions)
    self._followers = {pair for words in edged for pair in itertools.pairwise(words)}

  def __call__(self, caption: str, rng: np.random.Generator) -> str:
    """The caption with two parts exchanged, each result being equally likely; itself where there is none.

    Where the parts begin and end, words stand beside each other as they did in some caption: colours change places with
    colours and not with sizes, and things with things.
    """
    words = caption.split()
    found = [changed for changed in self._results(words) if changed != words]
    if not found:
      return caption
    unique = sorted({' '.join(changed) for changed in found})
    return unique[rng.integers(len(unique))]

  def _results(self, words: list[str]) -> Iterable[list[str]]:
    edged, count = [_EDGE, *words, _EDGE], len(words) + 1
    for size in range(1, MOST_WORDS + 1):
      for i in range(1, count - 2 * size + 1):
        for j in range(i + size, count - size + 1):
          if (edged[i - 1], edged[j]) in self._followers:  # few pass, and the rest takes longer
            changed = list(edged)
            changed[i : i + size], changed[j : j + size] = edged[j : j + size], edged[i : i + size]
            if all((changed[at - 1], changed[at]) in self._followers for at in (i + size, j, j + size)):
              yield changed[1:-1]
