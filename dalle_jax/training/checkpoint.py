"""Checkpoints: the newest few and the best, written in the background and atomically by Orbax."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from dalle_jax import trees
from dalle_jax.training import checkpoint_format, description
from dalle_jax.training.checkpoint_format import FORMAT_VERSION, NewerFormatError
from dalle_jax.training.state import TrainState


class MismatchError(ValueError):
  """A checkpoint that is whole, but of another model or optimizer."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint held."""

  step: int
  state: TrainState
  data: dict[str, Any]  # the position of the data iterator
  meta: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run: `keep` newest, and besides the one with the lowest loss.

  All processes of a run make the same calls. A context manager; leaving it waits for the last write.
  """

  def __init__(self, directory: Path, keep: int, about: Mapping[str, Any] | None = None) -> None:
    """`about` describes the run (`description.describe`): every checkpoint says it of itself."""
    self.directory = Path(directory).resolve()
    self._about = dict(about or {})
    self._damaged: list[int] = []
    self._policy = _NewestAndBest(keep)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self._policy, cleanup_tmp_directories=True, enable_async_checkpointing=True
    )
    self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=('state', 'data', 'meta'))
    for step in self.steps():
      self._policy.losses[step] = self._read_loss(step)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def steps(self) -> list[int]:
    """The steps that have a checkpoint, in order."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """The step with the lowest recorded loss, or None where no loss was recorded."""
    return self._policy.best(self.steps())

  def save(
    self, step: int, state: TrainState, data: dict[str, Any], meta: dict[str, Any], loss: float | None = None
  ) -> None:
    """Starts writing a checkpoint; the arrays may be donated as soon as this returns.

    Args:
      data, meta: JSON-able.
      loss: the held-out loss of just this state, if it was measured.

    Raises:
      ValueError: there is a checkpoint of this step or a later one (Orbax would skip the save silently).
    """
    self._delete_damaged()
    latest = self._manager.latest_step()
    if latest is not None and step <= latest:
      raise ValueError(f'Cannot save step {step}: {self.directory} holds step {latest} already.')
    meta = {
      'format_version': FORMAT_VERSION,
      'loss': None if loss is None else float(loss),
      'meta': meta,
      'description': self._about,
    }
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), meta=ocp.args.JsonSave(meta)
    )
    self._policy.losses[step] = meta['loss']
    saved = self._manager.save(step, args=items, force=True)
    assert saved, f'Orbax refused to save step {step}'

  def restore_latest(self, abstract: TrainState) -> Restored | None:
    """The newest checkpoint that can be read, put onto the shardings of `abstract`; None if there are none.

    A damaged one is named in a warning, and deleted when training has passed on to its next save.

    Raises:
      ValueError: there are checkpoints, but none of them can be read; or one that is whole does not fit the model, or
        was written by a later version.
    """
    self._damaged = []
    for step in reversed(self.steps()):
      try:
        restored = self.restore(step, abstract)
      except (MismatchError, NewerFormatError) as error:
        raise ValueError(f'The checkpoint {self.directory / str(step)} cannot be continued: {error}.') from error
      except Exception as error:  # Orbax and its storage raise many kinds; all of them mean "not this one".
        logging.warning('Checkpoint %s cannot be restored: %s', self.directory / str(step), error)
        self._damaged.append(step)
        last_error = error
        continue
      return restored
    if self._damaged:
      raise ValueError(
        f'None of the checkpoints {sorted(self._damaged)} in {self.directory} can be restored: they are damaged. Take '
        f'another WORKDIR; to start afresh here delete the directory. The last error was: {last_error}'
      ) from last_error
    return None

  def restore(self, step: int, abstract: TrainState) -> Restored:
    """The checkpoint of `step`.

    Raises:
      MismatchError: it is of another model or optimizer.
      NewerFormatError: a later version of dalle_jax wrote it.
      Exception: whatever Orbax raises where it is missing or damaged.
    """
    meta = self._read_meta(step)
    version = checkpoint_format.check_version(meta)
    stored = checkpoint_format.stored_form(version, abstract)
    differences = trees.differences(self._shapes(step), stored)
    if differences:
      changed = description.changes(meta.get('description', {}), self._about)
      raise MismatchError(
        f'it holds another model or optimizer than the configuration describes (given: the checkpoint): {differences}.'
        f'{changed} Restore the configuration or take another WORKDIR; to start afresh delete the directory'
      )
    items = ocp.args.Composite(state=ocp.args.StandardRestore(stored), data=ocp.args.JsonRestore())
    restored = self._manager.restore(step, args=items)
    state = checkpoint_format.current_form(version, restored['state'], abstract)
    return Restored(step=step, state=state, data=restored['data'], meta=meta['meta'])

  def _shapes(self, step: int) -> Any:
    """Shapes and dtypes of a stored state."""
    return ocp.StandardCheckpointHandler().metadata(self.directory / str(step) / 'state').tree

  def reached_preemption(self, count: int) -> bool:
    """Whether all hosts are to stop here, as one of them was told to end; `count` grows by 1 from call to call."""
    return self._manager.reached_preemption(count)

  def wait_until_finished(self) -> None:
    """Waits until the last save is on disk; raises what went wrong with it."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save and lets go of the directory."""
    self._manager.close()

  def _delete_damaged(self) -> None:
    for step in self._damaged:
      self._manager.delete(step)
    self._damaged = []

  def _read_meta(self, step: int) -> dict[str, Any]:
    return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']

  def _read_loss(self, step: int) -> float | None:
    try:
      return self._read_meta(step)['loss']
    except Exception as error:  # as in restore_latest; a loss that cannot be read must not keep the run from starting
      logging.warning('The loss of checkpoint %s cannot be read: %s', self.directory / str(step), error)
      return None


class _NewestAndBest:
  """Orbax's preservation policy. Its own BestN reads losses while opening, and one damaged file makes that fail."""

  def __init__(self, keep: int) -> None:
    self._keep = keep
    self.losses: dict[int, float | None] = {}

  def best(self, steps: Sequence[int]) -> int | None:
    measured = [step for step in steps if self.losses.get(step) is not None]
    return min(measured, key=lambda step: self.losses[step], default=None)

  def should_preserve(
    self,
    checkpoints: Sequence[ocp.checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: ocp.checkpoint_managers.PreservationContext,
  ) -> list[bool]:
    steps = [info.step for info in checkpoints]
    kept = {*sorted(steps)[-self._keep :], self.best(steps)}
    return [step in kept for step in steps]
