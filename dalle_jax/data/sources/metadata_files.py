"""Reads `metadata.jsonl` and `metadata.csv`: lines with the file name and the captions of a picture."""

import csv
import io
import json
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dalle_jax.data.pictures.image import EXTENSIONS
from dalle_jax.files import shown

METADATA = ('metadata.jsonl', 'metadata.csv')
CAPTION_KEYS = ('text', 'caption')
LAYOUT = (
  'Looked for metadata.jsonl or metadata.csv with lines such as\n'
  '  {"file_name": "images/cat.png", "text": "a cat on a mat"}\n'
  'and for images with a caption file beside them:\n'
  f'  cat.png  cat.txt   ({", ".join(sorted(EXTENSIONS))})'
)


class Listed(NamedTuple):
  """A picture of a metadata line."""

  path: str  # relative to the data folder, with forward slashes
  captions: list[str] | None  # in order, some may be empty; None if the line has none


def is_metadata(path: str) -> bool:
  """Whether a file is read as metadata. Upper and lower case make no difference."""
  return posixpath.basename(path).lower() in METADATA


def read_metadata(root: Path, path: str) -> Iterator[Listed]:
  """Yields the pictures of a metadata file.

  Args:
    root: the data folder.
    path: the file, relative to the folder.

  Raises:
    ValueError: the file cannot be read, its columns are not known, a line is invalid or names a file outside the
      folder, or no line has a caption. The message names the line.
  """
  rows = _jsonl_rows if path.lower().endswith('.jsonl') else _csv_rows
  first_keys, has_captions = None, False
  for number, row in rows(_read_text(root, path), shown(path, 100)):
    where = f'{shown(path, 100)}, line {number}'
    name = row.get('file_name')
    if not isinstance(name, str) or not name:
      raise ValueError(f'{where}: "file_name" is missing or not a string. {LAYOUT}')
    first_keys = first_keys or list(row)
    has_captions = has_captions or any(key in row for key in CAPTION_KEYS)
    yield Listed(_inside(posixpath.dirname(path), name, where), _captions(row, where))
  if first_keys and not has_captions:
    raise ValueError(
      f'{shown(path, 100)}: no line has "text" or "caption"; the first line has {shown(", ".join(first_keys), 100)}. '
      f'{LAYOUT}'
    )


def _captions(row: dict[str, Any], where: str) -> list[str] | None:
  """The captions of a line: first what "text" holds, then what "caption" holds."""
  captions: list[str] = []
  for key in CAPTION_KEYS:
    values = row.get(key)
    for value in values if isinstance(values, list) else [values]:
      if isinstance(value, str):
        captions.append(clean(value))
      elif value is not None:
        raise ValueError(f'{where}: "{key}" holds {shown(repr(value), 60)}, which is not a string. {LAYOUT}')
  return captions or None


def _jsonl_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  # Not splitlines(): it also splits at U+2028 and similar characters, which JSON strings may contain unescaped.
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ValueError(f'{path}, line {number}: not JSON: {shown(error, 150)}.') from error
    if not isinstance(row, dict):
      raise ValueError(f'{path}, line {number}: not a JSON object but {shown(line.strip(), 60)}.')
    yield number, row


def _csv_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  reader = csv.reader(io.StringIO(text, newline=''), strict=True)
  columns: list[str] | None = None
  while True:
    number = reader.line_num + 1  # a row in quotes may have several lines; this is its first one
    try:
      row = next(reader, None)
    except csv.Error as error:
      raise ValueError(f'{path}, line {number}: not CSV: {shown(error, 150)}.') from error
    if row is None:
      break
    if columns is None:
      columns = _checked_columns(row, path)
    elif len(row) > len(columns):
      raise ValueError(
        f'{path}, line {number}: it has {len(row)} fields, but the first line names {len(columns)} columns: '
        f'{shown(",".join(row), 80)}. Put a caption that contains a comma in double quotes.'
      )
    elif row:
      yield number, dict(zip(columns, row, strict=False))
  if columns is None:
    _checked_columns([], path)


def _checked_columns(columns: list[str], path: str) -> list[str]:
  """Returns the columns of a CSV file. Raises ValueError if they do not have the names that are read, each once."""
  named = shown(', '.join(map(repr, columns)), 150) or 'no columns'
  needed = 'It needs file_name, and text or caption, separated by commas.'
  if 'file_name' not in columns or not set(CAPTION_KEYS) & set(columns):
    raise ValueError(f'{path}: its first line names {named}. {needed}')
  if len(set(columns)) < len(columns):
    raise ValueError(f'{path}: its first line names {named}, some of them twice. {needed}')
  return columns


def _inside(folder: str, name: str, where: str) -> str:
  """Returns the path of a listed file relative to the data folder. Raises ValueError if it is outside that folder.

  Args:
    folder: the metadata file's folder, relative to the data folder.
    name: the listed `file_name`.
    where: the metadata file and line, for the message.
  """
  path = posixpath.normpath(posixpath.join(folder, name))
  if posixpath.isabs(path) or path.split('/')[0] == '..' or '\0' in path:
    raise ValueError(f"{where}: file_name '{shown(name, 80)}' leads out of the folder; only files inside it are read.")
  return path


def _read_text(root: Path, path: str) -> str:
  """Reads a metadata file, without a byte-order mark.

  Raises:
    ValueError: the file cannot be read or is not UTF-8.
  """
  try:
    return (root / path).read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{shown(root / path)} is not UTF-8 text: {error.reason} at byte {error.start}. Save it as UTF-8.'
    ) from error
  except OSError as error:
    raise ValueError(f'{shown(root / path)} cannot be read: {error.strerror}.') from error


def clean(caption: str) -> str:
  """A caption without spaces around it. Half of a surrogate pair, which JSON can encode, becomes '?'."""
  return caption.strip().encode('utf-8', 'replace').decode()
