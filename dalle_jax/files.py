"""Output files: check them before any work, and write them atomically. Foreign text: make it fit for a message."""

import contextlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


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


def check_out(out: Path, overwrite: bool, what: str = '--out') -> None:
  """Check that an output file can be written, and create its directory.

  Args:
    out: The file; a device or a pipe, such as /dev/stdout, may exist.
    overwrite: Whether the file may exist.
    what: The flag that named it, for messages.

  Raises:
    ValueError: The name is empty, the file exists, is a directory or cannot be written, or its disk is full.
  """
  if str(out) in ('', '.'):
    raise ValueError(f'{what} is empty; name a file.')
  if out.is_file() and not overwrite:
    raise ValueError(f'{what}: {shown(out)} exists; give another name, or --overwrite.')
  try:
    if os.path.lexists(out) and not out.is_file() and not out.is_dir() and out.exists():
      return  # a device or a pipe
    existed = out.exists()
    with out.open('a') if existed else contextlib.nullcontext():
      pass
    out.parent.mkdir(parents=True, exist_ok=True)
    _try_to_write(out.resolve().parent)
  except (OSError, RuntimeError, ValueError) as error:  # a circle of links; a NUL character
    raise ValueError(f'{what} {shown(out)} cannot be written: {error}. Name a file in a writable directory.') from None


def make_directory(out: str, size: int = 0, what: str = '--out') -> Path:
  """The directory of an output flag, created if it does not exist.

  Args:
    out: The directory.
    size: Bytes that will be written at least.
    what: The flag that named it, for messages.

  Raises:
    ValueError: The name is empty, or the directory cannot be created or written, or its disk has too little space.
  """
  if not out.strip():
    raise ValueError(f'{what} is empty; name a directory.')
  directory = Path(out)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    _try_to_write(directory)
    free = shutil.disk_usage(directory).free
  except (OSError, ValueError) as error:
    raise ValueError(f'{what} {shown(out)} cannot be made or written: {error}. Name a writable directory.') from None
  if size > free:
    raise ValueError(
      f'{what} {shown(out)}: the output takes at least {size / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free. '
      'Ask for less, or name a directory on another disk.'
    )
  return directory


def _try_to_write(directory: Path) -> None:
  """Raise OSError if no file can be written in a directory."""
  with tempfile.TemporaryFile(prefix='.writing-', dir=directory) as file:
    file.write(bytes(4096))


def check_new(paths: Iterable[Path], overwrite: bool) -> None:
  """Check that files that a command will write do not exist.

  Raises:
    ValueError: One exists, and `overwrite` is not set; or a directory has its name.
  """
  for path in paths:
    if path.is_dir():
      raise ValueError(f'{shown(path)} is a directory, but a file of this name is to be written; use another --out.')
    if not overwrite and os.path.lexists(path):
      raise ValueError(f'{shown(path)} exists; use another --out or another --seed, or --overwrite to replace files.')


def check_directory(out: Path, what: str) -> None:
  """Check that a directory may be created. Raises ValueError if it exists and is not empty, or cannot be created."""
  _check_parent(out, what)
  if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
    raise ValueError(f'{what}: {out} exists; several pictures need a directory that is new or empty.')


def _check_parent(out: Path, what: str) -> None:
  parent = out.absolute().parent
  if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
    raise ValueError(f'{what}: {out} cannot be written: {parent} is not a directory, or is read-only.')
  try:
    _try_to_write(parent)
  except OSError as error:
    raise ValueError(f'{what}: {out} cannot be written: {error}. Name a directory that can be written.') from None


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


def shown(text: object, most: int = 200) -> str:
  """Text from outside, such as a file's name or contents, in a form that is safe and short enough for a message.

  Control characters, line breaks, invisible and bidirectional formatting characters and surrogates are escaped as in
  Python, for example `\\x1b`. The middle of a long text is replaced by an ellipsis.

  Args:
    text: The text, or an object such as a path or an exception that `str` turns into the text.
    most: The largest number of characters to return, at least 3.
  """
  text = str(text)
  if len(text) > most:  # so that the work does not depend on the length either
    text = text[: most + 1] + text[-most:]
  escaped = ''.join(char if char.isprintable() else char.encode('unicode_escape').decode() for char in text)
  if len(escaped) <= most:
    return escaped
  tail = (most - 1) // 3
  return f'{escaped[: most - 1 - tail]}…{escaped[len(escaped) - tail :]}'
