"""Checksums of a checkpoint's files, made in the background of a save and compared before a restore.

A checkpoint has the item `checksums`: `checksums.json`, with the size and the CRC-32 of every file of the other items.
Files do not depend on the mesh that reads them, so a checkpoint is compared in the same way on any mesh and any number
of hosts. A missing item `checksums` is allowed in checkpoints of format 1 and 2 only.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dalle_jax import integrity
from dalle_jax.files import read_json_object

ITEM = 'checksums'
_ALGORITHM = 'crc32'
_COMMIT_FILE = 'commit_success.txt'  # Orbax writes it after the other files of an item


class DamagedError(ValueError):
  """Files of a checkpoint are missing or have changed."""


class ChecksumHandler(ocp.CheckpointHandler):
  """Writes the item. Orbax calls `finalize` in the background of a save on the first host, after the other items."""

  def __init__(self) -> None:
    self.seconds = 0.0  # that the last checksums took

  def save(self, directory: Any, args: 'ChecksumSave') -> None:
    """Does nothing: the files of the other items do not exist yet."""

  def restore(self, directory: Any, args: Any = None) -> None:
    """Does nothing; `check` reads the file."""

  def finalize(self, directory: Any) -> None:
    """Writes `checksums.json` for the files of the items beside `directory`."""
    start = time.perf_counter()
    root = Path(directory).parent
    sizes = {name: size for name, size in integrity.files_below(root).items() if _is_covered(name)}
    digests = integrity.checksums(root, sizes, _ALGORITHM)
    files = {name: {'size': size, _ALGORITHM: digests[name]} for name, size in sizes.items()}
    (Path(directory) / 'checksums.json').write_text(integrity.with_checksum({'files': files}))
    self.seconds = time.perf_counter() - start


@ocp.args.register_with_handler(ChecksumHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class ChecksumSave(ocp.args.CheckpointArgs):
  """Arguments of the item; it has none."""


def _is_covered(name: str) -> bool:
  """Whether checksums cover the file with this path in a checkpoint: all files of items, as Orbax wrote them."""
  item, _, inner = name.partition('/')
  return bool(inner) and not item.startswith(ITEM) and not inner.endswith(_COMMIT_FILE)


def exist(checkpoint: Path) -> bool:
  """Whether a checkpoint has checksums."""
  return (checkpoint / ITEM).exists()


def check(checkpoint: Path, chosen: Callable[[str], bool] | None = None) -> None:
  """Compares the files of a checkpoint with their sizes and checksums.

  Args:
    checkpoint: The directory of the checkpoint, which has checksums.
    chosen: Whether to compare the file with a path; None compares all. Several hosts then share the work.

  Raises:
    DamagedError: A file is missing or has changed. The message names it.
    OSError: A file cannot be read.
  """
  expected = _expected(checkpoint / ITEM / 'checksums.json')
  if chosen is None:
    largest_first = sorted(expected, key=lambda name: -expected[name]['size'])
    names = largest_first[jax.process_index() :: jax.process_count()]
  else:
    names = [name for name in expected if chosen(name)]
  damaged = integrity.damages(checkpoint, {name: expected[name] for name in names}, _ALGORITHM)
  if damaged:
    raise DamagedError(f'damaged: {integrity.listed(damaged)}')


def _expected(file: Path) -> dict[str, dict[str, Any]]:
  """The size and the checksum of each file, from `checksums.json`."""
  try:
    values = read_json_object(file, max_bytes=integrity.MOST_JSON_BYTES)
    if not integrity.has_own_checksum(file.read_bytes(), values.get('checksum')):
      raise ValueError(f'{file} is damaged: its contents do not match its checksum')
  except ValueError as error:
    raise DamagedError(str(error).rstrip('.')) from error.__cause__
  return values['files']
