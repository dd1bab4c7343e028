"""Output files: check them before any work, and write them atomically."""

import contextlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def shown(text: object, most: int = 200) -> str:
  """A text from outside for a message: control and invisible characters escaped, cut after `most` characters.

  Characters that move the cursor, that colour, or that change the direction of writing could forge what a terminal
  shows.
  """
  text = str(text)
  cut = text[:most]
  printed = ''.join(char if char.isprintable() else char.encode('unicode_escape', 'replace').decode() for char in cut)
  return printed if len(text) <= most else f'{printed}... ({len(text)} characters)'


def check_file(out: Path, overwrite: bool, what: str, others: tuple[Path, ...] = ()) -> None:
  """Check that a file may be written.

  Args:
    out: The file.
    overwrite: Whether it may exist.
    what: The flag or argument that named it, for messages.
    others: Files and directories that the command also reads or writes, so that `out` must differ from them.

  Raises:
    ValueError: The file exists, is not a regular file, is one of `others`, or its directory is not writable.
  """
  _check_parent(out, what)
  if os.path.lexists(out):
    if not (stat.S_ISREG(out.lstat().st_mode) or out.is_symlink()) or out.is_dir():
      raise ValueError(f'{what}: {out} is no regular file; give another name.')
    if not overwrite:
      raise ValueError(f'{what}: {out} exists; give another name, or --overwrite.')
  same = [other for other in others if out.resolve() == other.resolve()]
  if same:
    raise ValueError(f'{what}: {out} is {same[0]}, which the command needs for another purpose; give another name.')


def check_out(out: Path) -> None:
  """Check that the file of --out can be written or overwritten, and create its directory.

  Raises:
    ValueError: It is a directory or cannot be written.
  """
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    existed = out.exists()
    with out.open('a'):
      pass
    if not existed:  # leave nothing behind if the command fails later
      out.unlink()
  except OSError as error:
    raise ValueError(f'--out {out} cannot be written: {error}. Name a file in a writable directory.') from None


def make_directory(out: str) -> Path:
  """The directory of --out, created if it does not exist. Raises ValueError if it cannot be created."""
  directory = Path(out)
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'--out {out} cannot be made: {error}. Name a writable directory.') from None
  return directory


def check_directory(out: Path, what: str) -> None:
  """Check that a directory may be created. Raises ValueError if it exists and is not empty, or cannot be created."""
  _check_parent(out, what)
  if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
    raise ValueError(f'{what}: {out} exists; several pictures need a directory that is new or empty.')


def _check_parent(out: Path, what: str) -> None:
  parent = out.absolute().parent
  if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
    raise ValueError(f'{what}: {out} cannot be written: {parent} is not a directory, or is read-only.')


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
  """Yield a temporary path for a file or a directory, which replaces `out` on success and is removed on failure."""
  scratch = Path(tempfile.mkdtemp(prefix='.writing-', dir=out.absolute().parent))
  try:
    yield scratch / 'out'
    assert (scratch / 'out').exists()
    if out.is_dir() and not out.is_symlink():
      out.rmdir()  # an empty one; see `check_directory`
    os.replace(scratch / 'out', out)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
  """Write a file atomically: write a file beside it, then rename that. Create missing directories.

  A symbolic link stays: its target is replaced. A device or a pipe, such as /dev/stdout, is written to directly.
  """
  path = Path(path)
  if path.exists() and not path.is_file() and not path.is_dir():
    path.write_bytes(content)
    return
  path = path.resolve()
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  try:
    with naming(path):
      partial.write_bytes(content)
      os.replace(partial, path)
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
  """Put the path into errors of writing, which name no file if the disk is full."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and error.filename is None:
      error.filename = str(path)
    raise


def write_json(path: Path, values: Any) -> None:
  """Write a JSON file atomically; see `write_whole`."""
  write_whole(path, (json.dumps(values, indent=2) + '\n').encode())


def finite_or_null(values: Mapping[str, Any]) -> dict[str, Any]:
  """The mapping with None in place of infinite numbers and NaN, which JSON cannot hold."""
  return {name: None if is_not_finite(value) else value for name, value in values.items()}


def is_not_finite(value: object) -> bool:
  """Whether a value is an infinite number or NaN."""
  return isinstance(value, float) and not math.isfinite(value)
