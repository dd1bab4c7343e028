"""SHA-256 of the record files of a TFDS data set, remembered by their sizes and times."""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dalle_jax.data.pictures.checked_pictures import CheckedPictures, Verdict, file_for
from dalle_jax.data.pictures.stores import Stamp
from dalle_jax.files import shown

_NUM_THREADS = 8
_BLOCK = 2**22  # bytes read at once


def digests(
  root: str, files: dict[str, int], directory: Path, progress: Callable[[int, int], None] | None = None
) -> list[str]:
  """Hash the record files of a data set. Files with the size and the time of an earlier call are not read again.

  Args:
    root: the data set's directory. It may be on a file system that only `epath` reads, such as gs://.
    files: the number of records of each file, by its path.
    directory: keeps the hashes for later starts, in a file that may be deleted at any time.
    progress: called with (records of the files that were read, records of the files to read).

  Returns:
    The SHA-256 of each file, in the order of `files`.

  Raises:
    ValueError: a file cannot be read.
  """
  known: dict[str, str] = {}
  with CheckedPictures(file_for(Path(root), directory), max_pixels=0) as memory:
    try:
      stamps = {file: _stamp(file) for file in files}
      for file, stamp in stamps.items():
        if verdict := memory.get(os.path.basename(file), stamp):
          known[file] = verdict.digest
      new, done = [file for file in files if file not in known], 0
      with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        for file, digest in zip(new, pool.map(_digest, new), strict=True):
          known[file] = digest
          memory.add(os.path.basename(file), stamps[file], Verdict(digest))
          done += files[file]
          if progress:
            progress(done, sum(files[name] for name in new))
    except OSError as error:
      raise ValueError(
        f'config.data.path: {shown(root)}: its file {shown(os.path.basename(str(error.filename)))} cannot be read: '
        f'{error.strerror or shown(error)}.'
      ) from error
  return [known[file] for file in files]


def size_of(file: str) -> int:
  """The size of a record file in bytes."""
  return _stamp(file).size


def _stamp(file: str) -> Stamp:
  if os.path.exists(file):
    return Stamp.of(os.stat(file))
  status = _path(file).stat()
  return Stamp(status.length, int(status.mtime * 1e9))


def _digest(file: str) -> str:
  digest = hashlib.sha256()
  with _path(file).open('rb') as opened:
    while block := opened.read(_BLOCK):
      digest.update(block)
  return digest.hexdigest()


def _path(file: str) -> Any:
  from etils import epath  # a dependency of TFDS, which also handles gs:// paths

  return epath.Path(file)
