"""Captions that are nearly right: two words of a caption exchanged, as hard negatives for a contrastive model.

A model that meets other captions only at random need only count words: two that name the same things in another order
hardly ever meet. An exchanged caption has all the words of the true one (Yuksekgonul et al. 2023, "When and why
vision-language models behave like bags-of-words", section 5).
"""

import itertools
from collections.abc import Iterable

import numpy as np

_EDGE = ''  # before the first word and after the last


class Exchanges:
  """Exchanges two words so that what results still reads like a caption. Picklable."""

  def __init__(self, captions: Iterable[str]):
    """Args: captions to learn from which words follow each other."""
    self._followers = {pair for caption in captions for pair in itertools.pairwise(_with_edges(caption.split()))}

  def __call__(self, caption: str, rng: np.random.Generator) -> str:
    """The caption with two words exchanged, each exchange being equally likely; itself where there is none.

    The words differ, and each word stands beside such words as it stood beside in some caption: colours change places
    with colours, and not with sizes.
    """
    words = caption.split()
    pairs = [(i, j) for i, j in itertools.combinations(range(len(words)), 2) if self._reads_well(words, i, j)]
    if not pairs:
      return caption
    i, j = pairs[rng.integers(len(pairs))]
    return ' '.join(_exchanged(words, i, j))

  def _reads_well(self, words: list[str], i: int, j: int) -> bool:
    if words[i] == words[j] or ((words[i - 1] if i else _EDGE), words[j]) not in self._followers:
      return False  # most pairs, and early
    changed = _with_edges(_exchanged(words, i, j))
    return all(pair in self._followers for at in (i, j) for pair in itertools.pairwise(changed[at : at + 3]))


def _with_edges(words: list[str]) -> list[str]:
  return [_EDGE, *words, _EDGE]


def _exchanged(words: list[str], i: int, j: int) -> list[str]:
  changed = list(words)
  changed[i], changed[j] = words[j], words[i]
  return changed
