"""An order of records in which similar captions stand together, so that a batch holds negatives that are hard to tell.

A contrastive model that meets captions at random need only count words: two that name the same things in another order
hardly ever meet. Batches of neighbours make it look at the order (hard negatives; Yuksekgonul et al. 2023, "When and
why vision-language models behave like bags-of-words", section 5).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dalle_jax.data.pipeline import Source


def similar_order(captions: Sequence[str], group_size: int, seed: int | list[int]) -> np.ndarray:
  """All records once, in groups of `group_size` whose captions share words; the groups in random order.

  Words get a random rank, and captions are sorted by their words, the first in rank first, so that neighbours share
  words, and other ones for another seed, as with MinHash (Broder 1997). Sorting looks at which words there are, and not
  at their order.

  Args:
    captions: of the records.
    group_size: records in a group; the last group holds what is left.
    seed: of the ranks and of the order.

  Returns:
    Numbers of records, int64 [len(captions)].
  """
  rng = np.random.default_rng(seed)
  words = [sorted(set(caption.lower().split())) for caption in captions]
  vocabulary = sorted({word for each in words for word in each})
  rank = dict(zip(vocabulary, rng.permutation(len(vocabulary)).tolist(), strict=True))
  tie = rng.permutation(len(captions)).tolist()  # equal ones are in another order each time
  order = sorted(range(len(captions)), key=lambda i: (sorted(rank[word] for word in words[i]), tie[i]))
  groups = [order[begin : begin + group_size] for begin in range(0, len(order), group_size)]
  return np.array([i for g in rng.permutation(len(groups)) for i in groups[g]], np.int64)


class InGroups:
  """Records of a source in groups of similar captions, epoch after epoch, for a stream that does not shuffle."""

  def __init__(self, source: Source, group_size: int, num_examples: int, seed: int):
    """Reads all captions.

    Args:
      source: the records.
      group_size: as for `similar_order`.
      num_examples: how many are needed; whole epochs of them are laid out, each in an order of its own.
      seed: of the orders.
    """
    captions = [source[i]['caption'] for i in range(len(source))]
    num_epochs = -(-num_examples // len(source))
    orders = [similar_order(captions, group_size, [seed, epoch]) for epoch in range(num_epochs)]
    self._source, self._order = source, np.concatenate(orders)

  def __len__(self) -> int:
    return len(self._order)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._source[int(self._order[index])]
