"""Files that a command writes: checked before any work, whole or not there, and never over what was not meant."""

import contextlib
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_file(out: Path, overwrite: bool, what: str, others: tuple[Path, ...] = ()) -> None:
  """Whether a file may be written.

  Args:
    out: the file.
    overwrite: whether it may exist.
    what: it is, for messages.
    others: files and directories that the command reads or writes too.

  Raises:
    ValueError: it exists, is no regular file, is one of `others`, or its directory cannot be written to.
  """
  _check_parent(out, what)
  if os.path.lexists(out):
    if not (stat.S_ISREG(out.lstat().st_mode) or out.is_symlink()) or out.is_dir():
      raise ValueError(f'{what}: {out} is no regular file; give another name.')
    if not overwrite:
      raise ValueError(f'{what}: {out} exists; give another name, or --overwrite.')
  same = [other for other in others if out.resolve() == other.resolve()]
  if same:
    raise ValueError(f'{what}: {out} is {same[0]}, which the command needs itself; give another name.')


def check_out(out: Path) -> None:
  """Whether the file of --out can be written, over another one too; makes its directory.

  Raises:
    ValueError: it is a directory, or cannot be written.
  """
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    existed = out.exists()
    with out.open('a'):
      pass
    if not existed:  # nothing is left behind, whatever goes wrong later
      out.unlink()
  except OSError as error:
    raise ValueError(f'--out {out} cannot be written: {error}') from None


def make_directory(out: str) -> Path:
  """The directory of --out, made if it is not there. Raises ValueError if it cannot be."""
  directory = Path(out)
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'--out {out} cannot be made: {error}') from None
  return directory


def check_directory(out: Path, what: str) -> None:
  """Whether a directory may be made. Raises ValueError if it is there and not empty, or cannot be."""
  _check_parent(out, what)
  if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
    raise ValueError(f'{what}: {out} exists; several pictures need a directory that is new or empty.')


def _check_parent(out: Path, what: str) -> None:
  parent = out.absolute().parent
  if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
    raise ValueError(f'{what}: {out} cannot be written: {parent} is no directory, or is read-only.')


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
  """A path to write a file or a directory to, which takes the place of `out` if all goes well and is removed if not."""
  scratch = Path(tempfile.mkdtemp(prefix='.writing-', dir=out.absolute().parent))
  try:
    yield scratch / 'out'
    assert (scratch / 'out').exists()
    if out.is_dir() and not out.is_symlink():
      out.rmdir()  # an empty one; see `check_directory`
    os.replace(scratch / 'out', out)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def is_not_finite(value: object) -> bool:
  return isinstance(value, float) and not math.isfinite(value)


def write_whole(path: Path, content: bytes) -> None:
  """Writes a file beside its place and renames it into it; missing directories are made."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  try:
    partial.write_bytes(content)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
