"""Feeds training batches to the devices: reads one batch ahead, leaves out excluded batches, counts bad records."""

from collections.abc import Iterable
from typing import Any, Protocol

import jax
import numpy as np

from dalle_jax.sharding import to_global
from dalle_jax.training import nonfinite
from dalle_jax.training.bad_records import BadDataError, BadRecords, Replacing


class BatchStream(Replacing, Protocol):
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
    bad: counts the bad records of the batches up to `position`, without those of excluded batches.
  """

  def __init__(self, batches: BatchStream, mesh: jax.sharding.Mesh) -> None:
    self._batches, self._mesh = batches, mesh
    self._ready: tuple[Any, np.ndarray] | BadDataError | None = None
    self._num_loaded = 0
    self.bad = BadRecords(mesh)
    self.start = self.position = batches.state()
    self.num_read = 0
    self.excluded: tuple[int, ...] = ()

  def restore(
    self, position: dict[str, Any], num_read: int, excluded: Iterable[int], bad: dict[str, Any] | None = None
  ) -> None:
    """Continue at another feed's position, leaving out the batches `excluded` from here on.

    Args:
      position: the other feed's `position`.
      num_read: its `num_read`.
      excluded: numbers of the batches to leave out.
      bad: the state of its `bad`; None starts at 0.
    """
    self._batches.restore(position)
    self._ready, self._num_loaded = None, num_read
    self.position, self.num_read = position, num_read
    self.excluded = tuple(sorted(excluded))
    self.bad.restore(bad)

  def next(self) -> Any:
    """Return the next batch. If `prepare` was called, its transfer to the devices has already started.

    Raises:
      ValueError: the stream has ended.
      BadDataError: no readable records were found for the batch.
    """
    if self._ready is None:
      self.prepare()
    ready, self._ready = self._ready, None
    if isinstance(ready, BadDataError):
      raise ready
    assert ready is not None
    batch, replaced = ready
    self.position, self.num_read = self._batches.state(), self._num_loaded
    self.bad.add(replaced)
    return batch

  def prepare(self) -> None:
    """Read the batch that `next` will return, and start its transfer to the devices.

    If the batch cannot be read, `next` raises the error, after the step that is under way has been logged.
    """
    while True:
      number, self._num_loaded = self._num_loaded, self._num_loaded + 1
      try:
        batch = next(self._batches)
      except StopIteration:
        raise ValueError(f'The training data ended after {number} batches, before the last training step.') from None
      except ValueError as error:
        self._num_loaded = number
        self._ready = BadDataError(str(error), on_all_hosts=jax.process_count() == 1)
        return
      if number not in self.excluded:
        break
    num_rows = len(jax.tree.leaves(batch)[0])
    self._ready = to_global(batch, self._mesh), np.broadcast_to(self._batches.replaced(), num_rows)

  def check_bad(self, total: int, num_read: int) -> None:
    """Check an earlier `bad.total()` at `num_read` batches against the stream's limit; see `BadRecords.check`."""
    self.bad.check(total, num_read, self._batches)

  def number_of(self, step: int) -> int:
    """Number of the batch used by `step` (1, 2, ...)."""
    number = step - 1
    for excluded in self.excluded:
      number += excluded <= number
    return number

  def shown_records(self, step: int, batch_size: int) -> str:
    """Names of records in the batch used by `step` (1, 2, ...), formatted for a message."""
    return nonfinite.shown_records(self._batches.records(self.number_of(step), nonfinite.MOST_RECORDS), batch_size)
