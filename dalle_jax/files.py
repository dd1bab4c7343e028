"""Files: check output paths before any work, write whole files, read bounded JSON, and show foreign text."""

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16 * 2**20
MOST_DIGITS = 300  # of an integer in JSON, with its sign; a float holds numbers of up to 308 digits
MAX_JSON_DEPTH = 100
MAX_PATH_BYTES = 3500  # leaves room for the longest names below a work directory; Linux allows 4095 bytes
UNFINISHED = '.writing-'  # how the names of files begin until they are complete
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


def check_regular(path: Path) -> None:
  """Check that a path leads to a regular file. Opening a pipe waits for its writer, and a device may have no end.

  Raises:
    ValueError: it leads to something else.
    OSError: there is nothing, or it cannot be accessed.
  """
  if not stat.S_ISREG(path.stat().st_mode):
    raise ValueError('it is a pipe, a device or a directory; give a regular file')


def read_json_object(
  path: Path, advice: str = '', max_bytes: int = MAX_JSON_BYTES, allow_nan: bool = False
) -> dict[str, Any]:
  """Read a JSON file that must hold an object.

  Args:
    path: The file.
    advice: A sentence for messages that says what to do if the file is damaged.
    max_bytes: The largest file to read.
    allow_nan: Whether NaN is allowed as a number.

  Raises:
    ValueError: The file cannot be read, is too large, or holds something else. The message names the file. If it cannot
      be read, the cause is the OSError.
  """
  try:
    if not stat.S_ISREG(path.stat().st_mode):
      raise ValueError(f'{path} is not a regular file. {advice}'.rstrip())
    with path.open('rb') as file:
      content = file.read(max_bytes + 1)
  except OSError as error:
    advice = 'Change its permissions.' if isinstance(error, PermissionError) else advice
    raise ValueError(f'{path} cannot be read: {error.strerror or error}. {advice}'.rstrip()) from error
  if len(content) > max_bytes:
    raise ValueError(f'{path} is larger than {max_bytes:,} bytes, the limit for this file. {advice}'.rstrip())
  try:
    return parse_json_object(content, allow_nan)
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}. {advice}'.rstrip()) from None


def parse_json_object(content: bytes, allow_nan: bool = False) -> dict[str, Any]:
  """The JSON object in a text.

  Args:
    content: The text, in UTF-8.
    allow_nan: Whether NaN is allowed as a number; Infinity and -Infinity always are.

  Raises:
    ValueError: The text is not a JSON object, repeats a key, or nests deeper than `MAX_JSON_DEPTH`. The message repeats
      at most a key of it.
  """
  if not content.strip():
    raise ValueError('it is empty')
  try:
    values = json.loads(
      content.decode(),
      object_pairs_hook=_distinct,
      parse_constant=float if allow_nan else _finite_or_infinite,
      parse_int=_integer,
    )
  except UnicodeDecodeError as error:
    raise ValueError(f'it is not UTF-8 text (byte {error.start})') from None
  except _UnusualJson:
    raise
  except (ValueError, RecursionError) as error:
    raise ValueError(f'it is not JSON ({_json_problem(error)})') from None
  if not isinstance(values, dict):
    raise ValueError(f'it holds {_json_kind(values)} and not a JSON object')
  level: list[Any] = [values]
  for _ in range(MAX_JSON_DEPTH):
    level = [item for parent in level for item in _children(parent)]
    if not level:
      return values
  raise ValueError(f'it nests deeper than {MAX_JSON_DEPTH} levels')


def _json_problem(error: Exception) -> str:
  return 'it nests too deep' if isinstance(error, RecursionError) else shown(error, 100)


class _UnusualJson(ValueError):
  """Valid JSON that none of our files holds."""


def _integer(digits: str) -> int:
  """An integer. Raises _UnusualJson if a float cannot hold it, because arithmetic with it would overflow."""
  if len(digits) > MOST_DIGITS:
    raise _UnusualJson(f'it holds a whole number of {len(digits):,} characters; at most {MOST_DIGITS} are allowed')
  return int(digits)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A dictionary of pairs. Raises _UnusualJson if a key is repeated."""
  values = dict(pairs)
  if len(values) < len(pairs):
    seen: set[str] = set()
    repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise _UnusualJson(f'the key {shown(repeated, 80)!r} is repeated')
  return values


def _finite_or_infinite(text: str) -> float:
  """The value of 'Infinity' or '-Infinity'. Raises _UnusualJson for NaN."""
  if text == 'NaN':
    raise _UnusualJson('it holds NaN')
  return float(text)


def _children(value: Any) -> list[Any]:
  """The objects and arrays directly in a JSON value."""
  items = value.values() if isinstance(value, dict) else value
  return [item for item in items if isinstance(item, dict | list)]


def _json_kind(value: Any) -> str:
  """What a JSON value is, in words."""
  kinds = {list: 'an array', str: 'a text', bool: 'true or false', type(None): 'null'}
  return kinds.get(type(value), 'a number')


def check_file(out: Path, overwrite: bool, what: str, others: tuple[Path, ...] = ()) -> None:
  """Check that a regular file in an existing directory can be written; see `check_out`.

  Args:
    out: The file.
    overwrite: Whether it may exist.
    what: The flag or argument that named it, for messages.
    others: Files and directories that the command also reads or writes, so that `out` must differ from them.

  Raises:
    ValueError: The file is not a regular file, is one of `others`, has no directory, or `check_out` refuses it.
  """
  check_path(out, what)
  _check_parent(out, what)
  if os.path.lexists(out) and not out.is_file():
    raise ValueError(f'{what}: {shown(out)} is not a regular file; give another name.')
  same = [other for other in others if out.resolve() == other.resolve()]
  if same:
    raise ValueError(
      f'{what}: {shown(out)} is {shown(same[0])}, which the command needs for another purpose; give another name.'
    )
  check_out(out, overwrite, what)


def check_out(out: Path, overwrite: bool, what: str = '--out') -> None:
  """Check that an output file can be written, and create its directory.

  Args:
    out: The file; a device or a pipe, such as /dev/stdout, may exist.
    overwrite: Whether the file may exist.
    what: The flag that named it, for messages.

  Raises:
    ValueError: The name is empty, the file exists, is a directory or cannot be written, or its disk is full.
  """
  check_path(out, what)
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
    raise ValueError(
      f'{what} {shown(out)} cannot be written: {reason(error, out)}. Name a file in a writable directory.'
    ) from None


def make_directory(out: str, size: int = 0, what: str = '--out') -> Path:
  """The directory of an output flag, created if it does not exist.

  Args:
    out: The directory.
    size: Bytes that will be written at least.
    what: The flag that named it, for messages.

  Raises:
    ValueError: The name is empty or cannot be used, or the directory cannot be created or written, or its disk has too
      little space.
  """
  if not out.strip():
    raise ValueError(f'{what} is empty; name a directory.')
  check_path(out, what)
  directory = Path(out)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    _try_to_write(directory)
    free = shutil.disk_usage(directory).free
  except (OSError, ValueError) as error:
    raise ValueError(
      f'{what} {shown(out)} cannot be made or written: {reason(error, out)}. Name a writable directory.'
    ) from None
  if size > free:
    raise ValueError(
      f'{what} {shown(out)}: the output takes at least {size / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free. '
      'Ask for less, or name a directory on another disk.'
    )
  return directory


def _try_to_write(directory: Path) -> None:
  """Raise OSError if no file can be written in a directory."""
  with tempfile.TemporaryFile(prefix=UNFINISHED, dir=directory) as file:
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
  check_path(out, what)
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
    raise ValueError(
      f'{what}: {out} cannot be written: {reason(error, parent)}. Name a directory that can be written.'
    ) from None


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
  """Yield a temporary path for a file or a directory, which replaces `out` on success and is removed on failure.

  The path is beside `out`, and no other process uses it. Errors of the operating system name `out` instead of it.
  """
  scratch = out.absolute().parent / f'{UNFINISHED}{secrets.token_hex(8)}'
  try:
    yield scratch
    if scratch.is_dir() and out.is_dir() and not out.is_symlink():
      out.rmdir()  # an empty one; see `check_directory`
    os.replace(scratch, out)
  except OSError as error:
    if str(error.filename) == str(scratch):
      error.filename = str(out)
      del error.filename2  # None would be printed
    raise
  finally:
    if scratch.is_dir():
      shutil.rmtree(scratch, ignore_errors=True)
    with contextlib.suppress(OSError):
      scratch.unlink()


def write_whole(path: Path, content: bytes) -> None:
  """Write a file atomically, and create missing directories; see `replacing`.

  A symbolic link stays: its target is replaced. A device or a pipe, such as /dev/stdout, is written to directly.
  """
  path = Path(path)
  if path.exists() and not path.is_file() and not path.is_dir():
    path.write_bytes(content)
    return
  path = path.resolve()
  path.parent.mkdir(parents=True, exist_ok=True)
  with naming(path), replacing(path) as partial:
    partial.write_bytes(content)


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


# What the system's words for an error number leave unclear.
_IN_WORDS = {
  errno.EEXIST: 'a file of this name exists', errno.ENOTDIR: 'a part of the path is a file, and not a directory',
  errno.EISDIR: 'it is a directory', errno.ELOOP: 'its symbolic links lead in a circle',
}  # fmt: skip


def reason(error: BaseException, path: object = None) -> str:
  """Why something failed, for the end of a sentence: without error numbers and the names of Python's types.

  Args:
    error: The error. An OSError may also say which file it is about.
    path: The file that the sentence names already.
  """
  if not isinstance(error, OSError) or not error.strerror:
    return shown(error, 300).rstrip('.') or 'for an unknown reason'
  text = _IN_WORDS.get(error.errno or 0, error.strerror)
  name = error.filename
  is_other = path is not None and isinstance(name, str) and os.path.abspath(name) != os.path.abspath(str(path))
  return f'{text} ({shown(name)})' if is_other else text


def shown(text: object, most: int = 200) -> str:
  """Text from outside, such as a file's name or contents, in a form that is safe and short enough for a message.

  Control characters, line breaks, invisible and bidirectional formatting characters and surrogates are escaped as in
  Python, for example `\\x1b`. The middle of a long text is replaced by an ellipsis.

  Args:
    text: The text, or an object such as a path or an exception that `str` turns into the text.
    most: The largest number of characters to return, at least 3.
  """
  text = str(text)
  if len(text) > most:  # so that the time does not depend on the length of the text
    text = text[: most + 1] + text[-most:]
  escaped = ''.join(char if char.isprintable() else char.encode('unicode_escape').decode() for char in text)
  if len(escaped) <= most:
    return escaped
  tail = (most - 1) // 3
  return f'{escaped[: most - 1 - tail]}…{escaped[len(escaped) - tail :]}'
