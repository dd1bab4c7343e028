"""Several sources as one, each with a fixed share of every batch."""

import itertools
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dalle_jax.data import unreadable
from dalle_jax.files import shown

if TYPE_CHECKING:
  import grain

  from dalle_jax.data.batches import Source


class Part(NamedTuple):
  """A source of a mixture."""

  path: str
  share: float  # of a batch; the shares of a mixture add up to 1


def is_mixture(path: str) -> bool:
  """Whether a path names several sources with shares, and not a file or a folder."""
  return ':' in path and not os.path.exists(path) and any(_share(part) is not None for part in path.split(','))


def parts_of(path: str) -> list[Part]:
  """The sources in a path such as 'a:0.7,b:0.3'. Shares that do not add up to 1 are scaled.

  Raises:
    ValueError: a part has no share, or a share is not a positive number.
  """
  parts = []
  for text in path.split(','):
    share = _share(text)
    if share is None or not (share > 0 and math.isfinite(share)):
      raise ValueError(
        f'config.data.path: {shown(text)!r} is not a source with a share; give sources and their shares of a batch, '
        'such as a:0.7,b:0.3.'
      )
    parts.append(Part(text.rpartition(':')[0].strip(), share))
  total = sum(part.share for part in parts)
  return [part._replace(share=part.share / total) for part in parts]


def _share(text: str) -> float | None:
  path, _, share = text.rpartition(':')
  try:
    return float(share) if path.strip() else None
  except ValueError:
    return None


class Mixture:
  """Random access to the records of several sources, one after another. Picklable."""

  def __init__(self, sources: Sequence['Source'], shares: Sequence[float]):
    """
    Args:
      sources: the sources.
      shares: the share of a batch of each source, above 0, with the sum 1.
    """
    self._sources, self._shares = list(sources), list(shares)
    self._starts = [0, *itertools.accumulate(map(len, sources))]

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, index: int) -> dict[str, Any]:
    number = self._number(index)
    return self._sources[number][index - self._starts[number]]

  def name(self, index: int) -> str:
    """The name of a record."""
    number = self._number(index)
    return unreadable.name_of(self._sources[number], index - self._starts[number])

  def captions(self, index: int) -> Sequence[str]:
    """All captions of a record."""
    number = self._number(index)
    return unreadable.captions_of(self._sources[number], index - self._starts[number])

  def order(self, seed: int, shuffle: bool) -> 'grain.MapDataset':
    """The endless order of the records, as indices. Any stretch of it holds each source's share, up to one record.

    Each source has its own epochs; a small one is repeated more often.

    Args:
      seed: the seed of the orders within the sources.
      shuffle: whether each epoch of a source has a new random order.
    """
    import grain

    orders = []
    for number, (start, end) in enumerate(itertools.pairwise(self._starts)):
      order = grain.MapDataset.range(start, end)
      orders.append((order.seed(seed + number).shuffle() if shuffle else order).repeat(None))
    return grain.MapDataset.mix(orders, self._shares)

  def _number(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(f'there is no record {index} of {len(self)}')
    return next(number for number, end in enumerate(self._starts[1:]) if index < end)
