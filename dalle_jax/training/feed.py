"""Feeds training batches to the devices: reads one batch ahead and leaves out excluded batches."""

from collections.abc import Iterable
from typing import Any, Protocol

import jax

from dalle_jax.sharding import to_global
from dalle_jax.training import nonfinite


class BatchStream(Protocol):
  """An endless stream of numpy batches that hold this process's rows. The position of the stream can be saved."""

  def __next__(self) -> Any: ...

  def state(self) -> dict[str, Any]: ...

  def restore(self, state: dict[str, Any]) -> None: ...

  def records(self, number: int, most: int) -> list[str]:
    """Names of the first records of a global batch, up to `most` names. Batches are numbered from 0."""


class Feed:
  """Yields the batches of a stream as global arrays.

  Attributes:
    start: position of the stream before its first batch.
    position: position of the stream after the batch that `next` returned last.
    num_read: batches of the stream up to `position`, including excluded ones.
    excluded: numbers of the batches to leave out, ascending.
  """

  def __init__(self, batches: BatchStream, mesh: jax.sharding.Mesh) -> None:
    self._batches, self._mesh = batches, mesh
    self._ready: Any = None
    self._num_loaded = 0
    self.start = self.position = batches.state()
    self.num_read = 0
    self.excluded: tuple[int, ...] = ()

  def restore(self, position: dict[str, Any], num_read: int, excluded: Iterable[int]) -> None:
    """Continue at another feed's `position` and `num_read`, leaving out the batches `excluded` from here on."""
    self._batches.restore(position)
    self._ready, self._num_loaded = None, num_read
    self.position, self.num_read = position, num_read
    self.excluded = tuple(sorted(excluded))

  def next(self) -> Any:
    """Return the next batch. If `prepare` was called, its transfer to the devices has already started.

    Raises:
      ValueError: the stream has ended.
    """
    if self._ready is None:
      self.prepare()
    batch, self._ready = self._ready, None
    self.position, self.num_read = self._batches.state(), self._num_loaded
    return batch

  def prepare(self) -> None:
    """Read the batch that `next` will return, and start its transfer to the devices."""
    while True:
      number, self._num_loaded = self._num_loaded, self._num_loaded + 1
      try:
        batch = next(self._batches)
      except StopIteration:
        raise ValueError(f'The training data ended after {number} batches, before the last training step.') from None
      if number not in self.excluded:
        break
    self._ready = to_global(batch, self._mesh)

  def number_of(self, step: int) -> int:
    """Number of the batch used by `step` (1, 2, ...)."""
    number = step - 1
    for excluded in self.excluded:
      number += excluded <= number
    return number

  def shown_records(self, step: int, batch_size: int) -> str:
    """Names of records in the batch used by `step` (1, 2, ...), formatted for a message."""
    return nonfinite.shown_records(self._batches.records(self.number_of(step), nonfinite.MOST_RECORDS), batch_size)
