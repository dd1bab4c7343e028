"""Files: check output paths before any work, write files atomically, and read JSON objects within bounds."""

import contextlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 100
MAX_PATH_BYTES = 3500  # leaves room for the longest names below a work directory; Linux allows 4095 bytes
_URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:')


def check_path(path: str | Path, what: str) -> None:
  """Check that the name of an output can be used, whether or not it exists.

  Args:
    path: The path, as the user gave it.
    what: The flag or argument that named it, for messages.

  Raises:
    ValueError: The path is empty, a URL such as gs://bucket/run, too long, or has control characters.
  """
  text = str(path)
  if not text or (isinstance(path, Path) and text == '.'):
    raise ValueError(f'{what} is empty; name a file or a directory.')
  if any(unicodedata.category(character) in ('Cc', 'Cs') for character in text):
    raise ValueError(f'{what} has control characters or undecodable bytes: {ascii(text)[:300]}. Give another name.')
  if len(os.fsencode(Path(text).absolute())) > MAX_PATH_BYTES:
    raise ValueError(f'{what} is longer than {MAX_PATH_BYTES} bytes ({text[:100]}...). Give a shorter path.')
  first = text.partition('/')[0]
  if text != first and _URL.fullmatch(first) and not os.path.lexists(first):  # `Path` makes gs:/ of gs://
    raise ValueError(
      f'{what} {text[:300]} is a URL; it must be a path in the file system. Mount the bucket, and set {what} to a '
      'directory in the mounted file system.'
    )


def check_array_path(path: str | Path, what: str, reading: bool = False) -> None:
  """Check that Orbax can store arrays at a path: it takes some characters of paths for patterns of names.

  Args:
    path: The path. Its parent directories are checked too, and the targets of links.
    what: The flag or argument that named it, for messages.
    reading: Whether the arrays are only read, which fewer characters prevent.

  Raises:
    ValueError: It cannot.
  """
  refused = ('\\', '**') if reading else ('[', '*', '?', '\\')
  for text in (str(Path(path).absolute()), os.path.realpath(path)):
    bad = next((characters for characters in refused if characters in text), None)
    if bad:
      raise ValueError(
        f'{what}: the path {text[:300]} contains {bad!r}, which the library that stores arrays cannot handle. Rename '
        f'it, or use a path without {" ".join(refused)}, also in the names of parent directories.'
      )


def read_json_object(path: Path, advice: str = '', max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
  """Read a JSON file that must hold an object.

  Args:
    path: The file.
    advice: A sentence for messages that says what to do if the file is damaged.
    max_bytes: The largest file to read.

  Raises:
    ValueError: The file cannot be read, is too large, or holds something else. The message names the file.
  """
  try:
    if not stat.S_ISREG(path.stat().st_mode):
      raise ValueError(f'{path} is not a regular file. {advice}'.rstrip())
    with path.open('rb') as file:
      content = file.read(max_bytes + 1)
  except OSError as error:
    raise ValueError(f'{path} cannot be read: {error}. {advice}'.rstrip()) from None
  if len(content) > max_bytes:
    raise ValueError(f'{path} is larger than {max_bytes:,} bytes, which this file never is. {advice}'.rstrip())
  try:
    return parse_json_object(content)
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}. {advice}'.rstrip()) from None


def parse_json_object(content: bytes) -> dict[str, Any]:
  """The JSON object in a text.

  Raises:
    ValueError: The text is no JSON object, or nests deeper than `MAX_JSON_DEPTH`. The message repeats none of it.
  """
  if not content.strip():
    raise ValueError('it is empty')
  try:
    values = json.loads(content.decode())
  except UnicodeDecodeError as error:
    raise ValueError(f'it is no text in UTF-8 (byte {error.start})') from None
  except (ValueError, RecursionError) as error:
    raise ValueError(f'it is no JSON ({type(error).__name__}: {str(error)[:100]})') from None
  if not isinstance(values, dict):
    raise ValueError(f'it holds {_json_kind(values)} and not a JSON object')
  level: list[Any] = [values]
  for _ in range(MAX_JSON_DEPTH):
    level = [item for parent in level for item in _children(parent)]
    if not level:
      return values
  raise ValueError(f'it nests deeper than {MAX_JSON_DEPTH} levels')


def _children(value: Any) -> list[Any]:
  """The objects and arrays directly in a JSON value."""
  items = value.values() if isinstance(value, dict) else value
  return [item for item in items if isinstance(item, dict | list)]


def _json_kind(value: Any) -> str:
  """What a JSON value is, in words."""
  kinds = {list: 'an array', str: 'a text', bool: 'true or false', type(None): 'null'}
  return kinds.get(type(value), 'a number')


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
  check_path(out, what)
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
  check_path(out, '--out')
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
  check_path(out, '--out')
  directory = Path(out)
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'--out {out} cannot be made: {error}. Name a writable directory.') from None
  return directory


def check_directory(out: Path, what: str) -> None:
  """Check that a directory may be created. Raises ValueError if it exists and is not empty, or cannot be created."""
  check_path(out, what)
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
    partial.write_bytes(content)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
  """Write a JSON file atomically; see `write_whole`."""
  write_whole(path, (json.dumps(values, indent=2) + '\n').encode())


def finite_or_null(values: Mapping[str, Any]) -> dict[str, Any]:
  """The mapping with None in place of infinite numbers and NaN, which JSON cannot hold."""
  return {name: None if is_not_finite(value) else value for name, value in values.items()}


def is_not_finite(value: object) -> bool:
  """Whether a value is an infinite number or NaN."""
  return isinstance(value, float) and not math.isfinite(value)
