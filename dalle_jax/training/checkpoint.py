"""Save and restore checkpoints with Orbax: written atomically in the background, keeping the newest and the best."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from dalle_jax import hosts, integrity, trees
from dalle_jax.files import read_json_object
from dalle_jax.training import checkpoint_checksums, checkpoint_faults, checkpoint_format, description
from dalle_jax.training.checkpoint_checksums import ArrayComparison, ChecksumHandler, ChecksumSave, DamagedError
from dalle_jax.training.checkpoint_faults import MismatchError
from dalle_jax.training.checkpoint_format import FORMAT_VERSION
from dalle_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Restored:
  """The contents of a checkpoint."""

  step: int
  state: TrainState
  data: dict[str, Any]  # position of the data iterator
  meta: dict[str, Any]  # as passed to `Checkpoints.save`


class Checkpoints:
  """Context manager for the checkpoints of one run: the newest ones, and the one with the lowest held-out loss.

  All processes of a run must make the same calls. Leaving the context waits for the last write. Restoring bypasses
  Orbax's CheckpointManager, because a host that fails to read would never reach the manager's barrier, and the others
  would wait there.
  """

  def __init__(self, directory: Path, keep: int, about: Mapping[str, Any] | None = None) -> None:
    """
    Args:
      directory: holds one subdirectory per step.
      keep: number of newest checkpoints to keep, in addition to the best one.
      about: description of the run, stored in every checkpoint (`description.describe`).
    """
    self.directory = Path(directory).resolve()
    self._about = dict(about or {})
    self._damaged: list[int] = []
    self._policy = _NewestAndBest(keep)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self._policy, cleanup_tmp_directories=True, enable_async_checkpointing=True
    )
    self._checksums = ChecksumHandler()
    self._manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=_handlers(self._checksums))
    for step in self.steps():
      self._policy.losses[step] = self._read_loss(step)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """Step of the checkpoint with the lowest held-out loss, or None if no loss was recorded."""
    return self._policy.best(self.steps())

  def save(
    self, step: int, state: TrainState, data: dict[str, Any], meta: dict[str, Any], loss: float | None = None
  ) -> None:
    """Start writing a checkpoint. The state's arrays may be donated as soon as this returns.

    Args:
      step: number of training steps done.
      state: the training state.
      data: position of the data iterator, serialisable to JSON.
      meta: further values, serialisable to JSON.
      loss: held-out loss of this state, if it was measured.

    Raises:
      ValueError: a checkpoint of this or a later step exists; Orbax would skip the save silently.
    """
    self._delete_damaged()
    latest = self._manager.latest_step()
    if latest is not None and step <= latest:
      raise ValueError(f'Cannot save step {step}: {self.directory} holds step {latest} already. Use another directory.')
    meta = {
      'format_version': FORMAT_VERSION,
      'loss': None if loss is None else float(loss),
      'meta': meta,
      'description': self._about,
    }
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), meta=ocp.args.JsonSave(meta),
      checksums=ChecksumSave(state),
    )  # fmt: skip
    self._policy.losses[step] = meta['loss']
    saved = self._manager.save(step, args=items, force=True)
    assert saved, f'Orbax refused to save step {step}'

  def restore_latest(self, abstract: TrainState) -> Restored | None:
    """Restore the newest intact checkpoint with the shardings of `abstract`, or return None if there are none.

    A damaged checkpoint is reported in a warning and skipped. The next `save` deletes it.

    Raises:
      ValueError: all checkpoints are damaged; or an undamaged one does not fit the model, was written by a later
        version, or may not be read.
      Exception: device or host memory is too small for the state.
    """
    self._damaged, causes, last_error = [], [], None
    for step in reversed(self.steps()):
      path = self.directory / str(step)
      failure: Exception | None = None
      try:
        # Each host reads its own shards. If one host fails, no host may continue from this checkpoint.
        with hosts.together(f'restoring {path}'):
          restored, arrays = self._read(step, abstract)
        if arrays is not None:
          arrays.check()
      except Exception as error:  # Orbax and its storage raise many types
        failure = error
      checkpoint_faults.raise_unless_damaged(failure, path)
      if failure is not None:
        self._damaged.append(step)
        causes.append(f'Checkpoint {path} cannot be restored: {integrity.cause(failure)}.')
        last_error = failure
        continue
      for cause in causes:
        logging.warning('%s The checkpoint %s is used instead.', cause, path)
      return restored
    if self._damaged:
      damaged, self._damaged = sorted(self._damaged), []
      raise ValueError(
        f'None of the checkpoints {damaged} in {self.directory} can be restored: all are damaged. Nothing was deleted. '
        'Copy an intact checkpoint back, set another --workdir, or delete this directory to start over. '
        + ' '.join(causes[: integrity.MOST_SHOWN])
      ) from last_error
    return None

  def restore(self, step: int, abstract: TrainState) -> Restored:
    """Restore the checkpoint of `step` with the shardings of `abstract`.

    Raises:
      DamagedError: a file or an array has changed since it was written.
      MismatchError: the checkpoint belongs to another model or optimizer.
      NewerFormatError: a later version of dalle_jax wrote the checkpoint.
      Exception: the checkpoint is missing or damaged; Orbax raises various types.
    """
    restored, arrays = self._read(step, abstract)
    if arrays is not None:
      arrays.check()
    return restored

  def _read(self, step: int, abstract: TrainState) -> tuple[Restored, ArrayComparison | None]:
    """The checkpoint of `step`, and its arrays for a comparison that all hosts make together; None before format 4."""
    version, meta = self._read_meta(step)
    if version > 2:
      checkpoint_checksums.check_files(self.directory / str(step))
    stored = checkpoint_format.stored_form(version, abstract)
    differences = trees.differences(self._shapes(step), stored)
    if differences:
      changed = description.changes(meta.get('description', {}), self._about)
      raise MismatchError(
        'it holds another model or optimizer than the configuration describes ("given" is the checkpoint, "expected" '
        f'the configuration): {differences}.{changed} Go back to the earlier configuration, set another --workdir, or '
        f'delete {self.directory} to start over'
      )
    path = self.directory / str(step) / 'state'
    tree = ocp.StandardCheckpointHandler().restore(path, args=ocp.args.StandardRestore(stored))
    arrays = ArrayComparison(self.directory / str(step), tree) if version > 3 else None
    state = checkpoint_format.current_form(version, tree, abstract)
    return Restored(step=step, state=state, data=self._read_json(step, 'data'), meta=meta['meta']), arrays

  @property
  def checksum_seconds(self) -> float:
    """Seconds that the checksums of the last save took in the background, as `ChecksumHandler.seconds` counts them."""
    return self._checksums.seconds

  def _shapes(self, step: int) -> Any:
    """Shapes and dtypes of the state that the checkpoint of `step` holds."""
    return ocp.StandardCheckpointHandler().metadata(self.directory / str(step) / 'state').tree

  def reached_preemption(self, count: int) -> bool:
    """Whether a host received SIGTERM and all hosts must stop now. `count` must grow by 1 with each call."""
    return self._manager.reached_preemption(count)

  def wait_until_finished(self) -> None:
    """Wait until the last save is on disk, and raise its error if it failed."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Wait for the last save and release the directory."""
    self._manager.close()

  def _delete_damaged(self) -> None:
    for step in self._damaged:
      self._manager.delete(step)
    self._damaged = []

  def _read_meta(self, step: int) -> tuple[int, dict[str, Any]]:
    """The format version of a checkpoint and its item 'meta', compared with its checksum.

    Raises:
      DamagedError: the file or the checksums have changed.
      NewerFormatError: a later version of dalle_jax wrote the checkpoint.
      ValueError: the item is damaged.
    """
    path = self.directory / str(step)
    has_checksums = checkpoint_checksums.exist(path)
    if has_checksums:
      checkpoint_checksums.check_files(path, lambda name: name.startswith('meta/'))
    meta = self._read_json(step, 'meta')
    version = checkpoint_format.check_version(meta)
    if (version > 2) != has_checksums:
      raise DamagedError(f'damaged: it has format {version}, but {"a" if has_checksums else "no"} list of checksums')
    if not isinstance(meta.get('meta'), dict) or not isinstance(meta.get('description', {}), dict):
      raise DamagedError("damaged: its item 'meta' is incomplete")
    return version, meta

  def _read_json(self, step: int, item: str) -> dict[str, Any]:
    file = self.directory / str(step) / item / 'metadata'
    return read_json_object(file, max_bytes=integrity.MOST_JSON_BYTES, allow_nan=True)

  def _read_loss(self, step: int) -> float | None:
    """The held-out loss of a checkpoint; None if it was not measured or cannot be read."""
    try:
      loss = self._read_meta(step)[1]['loss']
      return loss if loss is None else float(loss)
    except Exception as error:  # any type, as in restore_latest; an unreadable loss must not stop the run
      logging.warning(
        'The loss of checkpoint %s cannot be read: %s', self.directory / str(step), integrity.cause(error)
      )
      return None


def _handlers(checksums: ChecksumHandler) -> ocp.handlers.CheckpointHandlerRegistry:
  """The handlers of a checkpoint's items. Orbax completes the items in this order; checksums must be the last."""
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  json_handler = ocp.JsonCheckpointHandler
  registry.add('state', ocp.args.StandardSave, ocp.StandardCheckpointHandler())
  registry.add('data', ocp.args.JsonSave, json_handler())
  registry.add('meta', ocp.args.JsonSave, json_handler())
  registry.add(checkpoint_checksums.ITEM, ChecksumSave, checksums)
  return registry


class _NewestAndBest:
  """Preservation policy for Orbax. Orbax's `BestN` reads all losses on opening, and fails if one file is damaged."""

  def __init__(self, keep: int) -> None:
    self._keep = keep
    self.losses: dict[int, float | None] = {}

  def best(self, steps: Sequence[int]) -> int | None:
    losses = {step: loss for step in steps if (loss := self.losses.get(step)) is not None}
    return min(losses, key=losses.__getitem__, default=None)

  def should_preserve(
    self,
    checkpoints: Sequence[ocp.checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: ocp.checkpoint_managers.PreservationContext,
  ) -> list[bool]:
    steps = [info.step for info in checkpoints]
    kept_steps = {*sorted(steps)[-self._keep :], self.best(steps)}
    return [step in kept_steps for step in steps]
