"""The training batches on their way to the devices: one ahead of need, and without those that a run passes over."""

from collections.abc import Iterable
from typing import Any, Protocol

import jax

from dalle_jax.sharding import to_global
from dalle_jax.training import nonfinite


class BatchStream(Protocol):
  """An endless stream of numpy batches (this process's rows) whose position can be saved."""

  def __next__(self) -> Any: ...

  def state(self) -> dict[str, Any]: ...

  def restore(self, state: dict[str, Any]) -> None: ...

  def records(self, number: int, most: int) -> list[str]:
    """Names of the first records, at most so many, in the global batch of this number, counted from 0."""


class Feed:
  """Batches as global arrays.

  Attributes:
    start: position of the stream at its beginning.
    position: of the stream, behind the batch that was given out last.
    num_read: batches of the stream up to there, those passed over among them.
    excluded: the numbers of those, ascending.
  """

  def __init__(self, batches: BatchStream, mesh: jax.sharding.Mesh) -> None:
    self._batches, self._mesh = batches, mesh
    self._ready: Any = None
    self._num_loaded = 0
    self.start = self.position = batches.state()
    self.num_read = 0
    self.excluded: tuple[int, ...] = ()

  def restore(self, position: dict[str, Any], num_read: int, excluded: Iterable[int]) -> None:
    """Goes to where another feed was; passes over the batches `excluded` from here on."""
    self._batches.restore(position)
    self._ready, self._num_loaded = None, num_read
    self.position, self.num_read = position, num_read
    self.excluded = tuple(sorted(excluded))

  def next(self) -> Any:
    """The next batch, already on its way to the devices where `prepare` was called.

    Raises:
      ValueError: there is none.
    """
    if self._ready is None:
      self.prepare()
    batch, self._ready = self._ready, None
    self.position, self.num_read = self._batches.state(), self._num_loaded
    return batch

  def prepare(self) -> None:
    """Reads the batch that `next` will give, and starts its transfer."""
    while True:
      number, self._num_loaded = self._num_loaded, self._num_loaded + 1
      try:
        batch = next(self._batches)
      except StopIteration:
        raise ValueError(f'The training data ended after {number} batches, before training did.') from None
      if number not in self.excluded:
        break
    self._ready = to_global(batch, self._mesh)

  def number_of(self, step: int) -> int:
    """The number of the batch of step 1, 2, ..."""
    number = step - 1
    for excluded in self.excluded:
      number += excluded <= number
    return number

  def shown_records(self, step: int, batch_size: int) -> str:
    """What the batch of step 1, 2, ... holds, for a message."""
    return nonfinite.shown_records(self._batches.records(self.number_of(step), nonfinite.MOST_RECORDS), batch_size)
