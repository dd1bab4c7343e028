"""Checkpoints: the newest few and the best, written in the background and atomically by Orbax."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from dalle_jax.training.state import TrainState


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

  def __init__(self, directory: Path, keep: int) -> None:
    self.directory = Path(directory).resolve()
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
    meta = {'loss': None if loss is None else float(loss), 'meta': meta}
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
      ValueError: there are checkpoints, but none of them can be read or fits the model.
    """
    self._damaged = []
    for step in reversed(self.steps()):
      try:
        restored = self.restore(step, abstract)
      except Exception as error:  # Orbax and its storage raise many kinds; all of them mean "not this one".
        logging.warning('Checkpoint %s cannot be restored: %s', self.directory / str(step), error)
        self._damaged.append(step)
        last_error = error
        continue
      return restored
    if self._damaged:
      raise ValueError(
        f'None of the checkpoints {sorted(self._damaged)} in {self.directory} can be restored. If the model or '
        'optimizer was changed, restore the configuration, or take another WORKDIR; to start afresh delete the '
        f'directory. The last error was: {last_error}'
      ) from last_error
    return None

  def restore(self, step: int, abstract: TrainState) -> Restored:
    """The checkpoint of `step`; raises whatever Orbax does where it is missing, damaged or does not fit."""
    items = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore()
    )
    restored = self._manager.restore(step, args=items)
    return Restored(step=step, state=restored['state'], data=restored['data'], meta=restored['meta']['meta'])

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

  def _read_loss(self, step: int) -> float | None:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']['loss']
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
