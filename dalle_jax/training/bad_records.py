"""Count the records that cannot be read while a stage trains, over all hosts, and end training if they are too many."""

from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.sharding import replicated, to_global


class BadDataError(ValueError):
  """Too many records cannot be read, so training ends. The run can continue when the data are mended.

  Attributes:
    on_all_hosts: whether all hosts raise it after the same step. If a single host finds no readable record, the others
      are in another step, so they cannot save a checkpoint together.
  """

  def __init__(self, problem: str, on_all_hosts: bool = True) -> None:
    super().__init__(problem)
    self.on_all_hosts = on_all_hosts

  def final(self, steps: list[int], directory: Path) -> ValueError:
    """The error that ends the run, with advice.

    Args:
      steps: steps that have a checkpoint.
      directory: the directory of the checkpoints.
    """
    saved = f'The checkpoint of step {steps[-1]} is in' if steps else 'No checkpoint has been written to'
    return ValueError(
      f'{self} {saved} {directory}. Mend the data, or raise config.data.max_bad_share if so many records may be bad. '
      'Then run the same command again to continue.'
    )


class LeftOutError(Exception):
  """A pass over held-out batches met records that cannot be read; the next pass leaves them out.

  Attributes:
    count: number of held-out records that passes leave out from now on.
  """

  def __init__(self, count: int) -> None:
    super().__init__(count)
    self.count = count


class Replacing(Protocol):
  """The part of a stream of batches that says which records it has replaced."""

  def replaced(self) -> np.ndarray:
    """Whether rows of the last batch hold another record because their own cannot be read, bool [rows] or []."""

  def most_replaced(self, num_batches: int) -> int:
    """How many rows of so many batches may be replaced before training has to end."""

  def bad_names(self) -> list[str]:
    """Names of the first few records that could not be read."""


class BadRecords:
  """The number of replaced rows in the batches that training has used.

  Hosts add up their counts only when `total` is called, so that a step costs no communication.

  Attributes:
    forgiven: number of replaced rows, and of batches, when training last ended because of bad records. They count in
      `total`, but no longer against the limit, so that a run whose data were mended can continue.
  """

  def __init__(self, mesh: jax.sharding.Mesh) -> None:
    self._mesh = mesh
    self._sum = jax.jit(jnp.sum, out_shardings=replicated(mesh))
    self.restore(None)

  def restore(self, state: dict[str, Any] | None) -> None:
    """Continue at the `state` of another object; None starts at 0."""
    state = state or {'count': 0, 'forgiven': (0, 0)}
    self._total: Any = int(state['count'])
    self._new: np.ndarray | None = None  # for each row of this process, since the last sum
    count, batches = state['forgiven']
    self.forgiven = (int(count), int(batches))

  def add(self, replaced: np.ndarray) -> None:
    """Add the rows of one batch that were replaced, bool [rows of this process]."""
    new = replaced.astype(np.int32)
    self._new = new if self._new is None else self._new + new

  def total(self) -> Any:
    """The number of replaced rows: an integer, or on several hosts an array that may still be computed.

    All processes must call this together.
    """
    if self._new is not None:
      if jax.process_count() == 1:
        self._total += int(self._new.sum())
      else:  # several processes may hold the same rows, so we sum over the rows of the global batch
        self._total = self._total + self._sum(to_global(self._new, self._mesh))
      self._new = None
    return self._total

  def state(self) -> dict[str, Any]:
    """What `restore` needs, for JSON. All processes must call this together."""
    return {'count': int(self.total()), 'forgiven': list(self.forgiven)}

  def check(self, total: int, num_batches: int, stream: Replacing) -> None:
    """Check that few enough rows were replaced.

    Args:
      total: an earlier result of `total`.
      num_batches: batches of the stream read at that time.
      stream: knows the limit and the names.

    Raises:
      BadDataError: more rows were replaced than the stream allows.
    """
    count, batches = total - self.forgiven[0], num_batches - self.forgiven[1]
    limit = stream.most_replaced(batches)
    if count <= limit:
      return
    self.forgiven = (total, num_batches)
    names = stream.bad_names()
    shown = f'The first of them are {", ".join(names)}.' if names else 'The logs of the other hosts name them.'
    raise BadDataError(
      f'{count} records of the last {batches} batches cannot be read; at most {limit} may be bad. {shown}'
    )
