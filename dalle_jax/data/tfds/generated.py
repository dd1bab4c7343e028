"""Checks of the files of a generated data set, and their removal when they have to be made again.

A generated data set has a file `hashes.json` with the size and the SHA-256 of each of its files.
"""

import hashlib
import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from dalle_jax.data.unreadable import first_line
from dalle_jax.files import UNFINISHED, reason, shown, write_json

HASHES = 'hashes.json'
_BLOCK = 2**20  # bytes read at once


def record(directory: Path) -> None:
  """Write the sizes and hashes of all files of a directory."""
  files = [file for file in sorted(directory.iterdir()) if file.is_file()]
  facts = {file.name: _facts(file) for file in files if not file.name.startswith((HASHES, UNFINISHED))}
  write_json(directory / HASHES, facts)


def damage(directory: Path, read: Callable[[], None]) -> str:
  """What is damaged in a generated data set, in words; '' if nothing is.

  Args:
    directory: the directory of the data set.
    read: reads all records, and raises an error if that is impossible. Called if there are no hashes, as in data sets
      of earlier versions; if all records can be read, the hashes are then written.

  Raises:
    PermissionError: a file may not be read, which does not mean damage.
  """
  try:
    facts = json.loads((directory / HASHES).read_text(encoding='utf-8'))
    return _first_difference(directory, facts)
  except FileNotFoundError:
    pass
  except PermissionError:
    raise
  except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
    return f'{HASHES}: {first_line(error)}'
  try:
    read()
  except PermissionError:
    raise
  except Exception as error:  # readers of array_record files, TFDS and Pillow raise many types
    return first_line(error)
  try:
    record(directory)
  except OSError:
    pass  # a directory that cannot be written is read again at the next start
  return ''


def remove(directory: Path, patterns: tuple[str, ...]) -> None:
  """Remove a generated data set so that it can be made again.

  Args:
    directory: the directory of the data set; it need not exist.
    patterns: patterns of the names of its files. Nothing else is ever removed.

  Raises:
    ValueError: the directory has other files, or files cannot be removed; nothing is removed in the first case.
  """
  if not directory.exists():
    return
  try:
    entries = sorted(directory.iterdir())
    others = [entry.name for entry in entries if not _is_own(entry, patterns)]
    if others:
      raise ValueError(
        f'The generated data set in {directory} is damaged or not finished, and has to be made again, but the '
        f'directory also has {shown(", ".join(others))}. Move these files elsewhere, or set another '
        'config.data.data_dir.'
      )
    for entry in entries:
      entry.unlink()
    directory.rmdir()
  except OSError as error:
    raise ValueError(
      f'The generated data set in {directory} is damaged or not finished, and cannot be removed to be made again: '
      f'{reason(error, directory)}. Make the directory writable, or set another config.data.data_dir.'
    ) from None


def _is_own(entry: Path, patterns: tuple[str, ...]) -> bool:
  # A killed start leaves an unfinished file. In earlier versions, the name of this file began with `hashes.json`.
  names = (*patterns, HASHES, f'{HASHES}.*', f'{UNFINISHED}*')
  return entry.is_file() and not entry.is_symlink() and any(fnmatch(entry.name, pattern) for pattern in names)


def _first_difference(directory: Path, facts: dict[str, list]) -> str:
  if not facts:
    return f'{HASHES} lists no files'
  for name, (size, digest) in facts.items():
    file = directory / name
    if not file.is_file():
      return f'{shown(name)} is missing'
    if file.stat().st_size != size:
      return f'{shown(name)} has {file.stat().st_size} bytes instead of {size}'
    if _facts(file)[1] != digest:
      return f'the contents of {shown(name)} have changed'
  return ''


def _facts(file: Path) -> list:
  """The size of a file in bytes, and its SHA-256."""
  digest = hashlib.sha256()
  with file.open('rb') as opened:
    while block := opened.read(_BLOCK):
      digest.update(block)
  return [file.stat().st_size, digest.hexdigest()]
