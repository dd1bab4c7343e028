"""Checksums of a checkpoint, made in the background of a save and compared by a restore.

A checkpoint has the item `checksums`: `checksums.json`, with the size and the CRC-32C of every file of the other items,
and a checksum of each array of the state, made from memory (`array_checksums`). The files are compared before anything
is read from them, the arrays after they were read. Neither depends on the mesh, so a checkpoint is compared in the same
way on any mesh and any number of hosts. Checkpoints of format 1 and 2 have no such item, those of format 3 no checksums
of arrays, and CRC-32 of files.
"""

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dalle_jax import integrity
from dalle_jax.files import read_json_object
from dalle_jax.training import array_checksums
from dalle_jax.training.array_checksums import HostArrays

ITEM = 'checksums'
_ALGORITHM = 'crc32c'
_EARLIER_ALGORITHM = 'crc32'  # of format 3
_COMMIT_FILE = 'commit_success.txt'  # Orbax writes it after the other files of an item
_PARTS = 'arrays.process_'  # the part of each process in the checksums of arrays, until they are combined


class DamagedError(ValueError):
  """Files or arrays of a checkpoint are missing or have changed."""


class ChecksumHandler(ocp.AsyncCheckpointHandler):
  """Writes the item: arrays in the background on every host, then files on the first host, after the other items."""

  def __init__(self) -> None:
    # For the last checksums: processor time for arrays (files are written meanwhile), then time for files.
    self.seconds = 0.0

  async def async_save(self, directory: Any, args: 'ChecksumSave') -> list[ocp.future.Future]:
    """Copies the arrays to the host, and sums them in the background."""
    arrays = HostArrays(args.state)
    name = f'{_PARTS}{jax.process_index()}.json'
    # Orbax makes the directory meanwhile; this future waits for it.
    future = ocp.future.CommitFutureAwaitingContractedSignals(self._write_part(Path(directory) / name, arrays))
    return [future]

  async def _write_part(self, file: Path, arrays: HostArrays) -> None:
    start = time.thread_time()
    file.write_text(json.dumps(arrays.checksums()))
    self.seconds = time.thread_time() - start

  def save(self, directory: Any, args: 'ChecksumSave') -> None:
    """Does the same and waits."""

    async def write() -> None:
      for future in await self.async_save(directory, args):
        future.result()

    asyncio.run(write())

  def restore(self, directory: Any, args: Any = None) -> None:
    """Does nothing; `check_files` and `ArrayComparison` read the file."""

  def finalize(self, directory: Any) -> None:
    """Writes `checksums.json`. Orbax calls it on the first host, when all hosts have written their items."""
    start = time.perf_counter()
    item = Path(directory)
    root = item.parent
    sizes = {name: size for name, size in integrity.files_below(root).items() if _is_covered(name)}
    digests = integrity.checksums(root, sizes, _ALGORITHM)
    files = {name: {'size': size, _ALGORITHM: digests[name]} for name, size in sizes.items()}
    parts = sorted(item.glob(f'{_PARTS}*.json'))
    arrays = array_checksums.combined([json.loads(part.read_text()) for part in parts])
    (item / 'checksums.json').write_text(integrity.with_checksum({'files': files, 'arrays': arrays}))
    for part in parts:
      part.unlink()
    self.seconds += time.perf_counter() - start


@ocp.args.register_with_handler(ChecksumHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class ChecksumSave(ocp.args.CheckpointArgs):
  """Arguments of the item.

  Attributes:
    state: The state that the item `state` stores.
  """

  state: Any


def _is_covered(name: str) -> bool:
  """Whether checksums cover the file with this path in a checkpoint: all files of items, as Orbax wrote them."""
  item, _, inner = name.partition('/')
  return bool(inner) and not item.startswith(ITEM) and not inner.endswith(_COMMIT_FILE)


def exist(checkpoint: Path) -> bool:
  """Whether a checkpoint has checksums."""
  return (checkpoint / ITEM).exists()


def check_files(checkpoint: Path, chosen: Callable[[str], bool] | None = None) -> None:
  """Compares the files of a checkpoint with their sizes and checksums.

  Args:
    checkpoint: The directory of the checkpoint, which has checksums.
    chosen: Whether to compare the file with a path; None compares all. Several hosts then share the work.

  Raises:
    DamagedError: A file is missing or has changed. The message names it.
    OSError: A file cannot be read.
  """
  stored = _stored(checkpoint)
  expected, algorithm = stored['files'], _ALGORITHM if 'arrays' in stored else _EARLIER_ALGORITHM
  if chosen is None:
    largest_first = sorted(expected, key=lambda name: -expected[name]['size'])
    names = largest_first[jax.process_index() :: jax.process_count()]
  else:
    names = [name for name in expected if chosen(name)]
  damaged = integrity.damages(checkpoint, {name: expected[name] for name in names}, algorithm)
  if damaged:
    raise DamagedError(f'damaged: {integrity.listed(damaged)}')


class ArrayComparison:
  """The arrays that were read from a checkpoint of format 4 or later, and the checksums that they should have."""

  def __init__(self, checkpoint: Path, state: Any) -> None:
    """
    Args:
      checkpoint: The directory of the checkpoint.
      state: What was read from it.

    Raises:
      DamagedError: The checkpoint lists no checksums of arrays.
    """
    stored = _stored(checkpoint)
    if 'arrays' not in stored:
      raise DamagedError('damaged: it has no checksums of arrays')
    self._expected: dict[str, int] = stored['arrays']
    self._own = HostArrays(state).checksums()

  def check(self) -> None:
    """Compares them. All hosts call this together, so each must have made its comparison.

    Raises:
      DamagedError: An array differs from the one that was saved. The message names it. All hosts raise it.
    """
    changed = array_checksums.changed(self._own, self._expected)
    if changed:
      raise DamagedError(f'damaged: {integrity.listed(f"{name} {integrity.CHANGED}" for name in changed)}')


def _stored(checkpoint: Path) -> dict[str, Any]:
  """The contents of `checksums.json`."""
  file = checkpoint / ITEM / 'checksums.json'
  try:
    values = read_json_object(file, max_bytes=integrity.MOST_JSON_BYTES)
    if not integrity.has_own_checksum(file.read_bytes(), values.get('checksum')):
      raise ValueError(f'{file} is damaged: its contents do not match its checksum')
  except ValueError as error:
    raise DamagedError(str(error).rstrip('.')) from error.__cause__
  return values
