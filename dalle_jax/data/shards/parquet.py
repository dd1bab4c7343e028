"""Parquet files with the bytes of pictures, as Hugging Face data sets have them. They are copied into shards once.

Needs the package pyarrow: `pip install 'dalle_jax[parquet]'`.
"""

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dalle_jax.data.account import Account
from dalle_jax.data.shards.picture_records import NewRecord
from dalle_jax.data.sources.metadata_files import clean
from dalle_jax.data.sources.survey import survey
from dalle_jax.data.text.caption_text import is_empty
from dalle_jax.files import shown

EXTENSION = '.parquet'
_IMAGE_COLUMNS = ('image', 'img', 'picture', 'jpg', 'png', 'webp')
_CAPTION_COLUMNS = ('caption', 'text', 'captions', 'sentences')


class _SchemaError(ValueError):
  """A file has no columns that can be used."""


class _Columns(NamedTuple):
  image: str
  is_struct: bool  # whether the column has the fields 'bytes' and 'path'
  caption: str | None


def records(root: Path, caption_key: str, account: Account) -> tuple[list[NewRecord], dict[str, Any]]:
  """Lists the rows of all Parquet files below a folder. Reads captions and paths, but no pictures.

  Args:
    root: the folder.
    caption_key: the column with the captions, strings or lists of strings.
    account: counts what is left out.

  Returns:
    The records, and a JSON object that identifies them.

  Raises:
    ValueError: pyarrow is missing, no file can be read, or a file has no column of pictures.
  """
  parquet = _parquet()
  files = [path for path in survey(root).files if path.lower().endswith(EXTENSION)]
  found: list[NewRecord] = []
  names: set[str] = set()
  facts = {}
  for path in files:
    file = root / path
    try:
      rows = _Rows(file, parquet, caption_key)
      named = rows.captions()
    except _SchemaError:
      raise
    except Exception as error:  # pyarrow raises many types
      account.note(f'a Parquet file that cannot be read: {shown(error, 80)}', path)
      continue
    status = file.stat()
    facts[path] = [status.st_size, status.st_mtime_ns]
    for index, (name, captions) in enumerate(named):
      key = name if name and name not in names else f'{path}/{index:09d}'
      names.add(key)
      found.append(NewRecord(key, captions, rows.reader(index)))
  if not facts:
    raise ValueError(f'config.data.path: no Parquet file in {shown(root)} can be read.\n{account}')
  return found, {'files': facts, 'caption_key': caption_key}


def directory_of(root: Path, data_dir: Path) -> Path:
  """The directory of the copy of a folder of Parquet files."""
  name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
  return data_dir / f'parquet_{name}'


def _parquet() -> Any:
  try:
    from pyarrow import parquet
  except ImportError:
    raise ValueError("Reading Parquet files needs the package pyarrow: pip install 'dalle_jax[parquet]'.") from None
  return parquet


class _Rows:
  """The rows of one file."""

  def __init__(self, file: Path, parquet: Any, caption_key: str):
    self._file = parquet.ParquetFile(file, memory_map=True)
    self._columns = _columns(self._file.schema_arrow, file, caption_key)
    metadata = self._file.metadata
    self._groups = [
      group for group in range(metadata.num_row_groups) for _ in range(metadata.row_group(group).num_rows)
    ]
    self._starts = {group: self._groups.index(group) for group in dict.fromkeys(self._groups)}
    self._lock = threading.Lock()
    self._group, self._pictures = -1, None  # the row group that was read last, and its pictures

  def captions(self) -> list[tuple[str, list[str] | None]]:
    """The name of each picture, or '', and its captions."""
    columns = self._columns
    wanted = [columns.caption] if columns.caption else []
    wanted += [f'{columns.image}.path'] if columns.is_struct else []
    if not wanted:
      return [('', None)] * len(self._groups)
    table = self._file.read(columns=wanted).to_pydict()
    texts = table.get(columns.caption) or [None] * len(self._groups)
    paths = [value and value.get('path') for value in table.get(columns.image) or [None] * len(self._groups)]
    return [(path or '', _captions(text)) for path, text in zip(paths, texts, strict=True)]

  def reader(self, index: int) -> Callable[[], bytes]:
    """A function that reads the picture of a row."""
    return lambda: self._read(index)

  def _read(self, index: int) -> bytes:
    group = self._groups[index]
    with self._lock:
      if self._group != group:
        try:
          table = self._file.read_row_group(group, columns=[self._columns.image])
        except Exception as error:  # pyarrow raises many types
          raise ValueError(f'its row group {group} cannot be read: {shown(error, 80)}') from error
        self._group, self._pictures = group, table.column(self._columns.image)
      assert self._pictures is not None
      value = self._pictures[index - self._starts[group]].as_py()
    data = value.get('bytes') if isinstance(value, dict) else value
    if data is None:
      raise ValueError('its row has no bytes of a picture')
    return data


def _columns(schema: Any, file: Path, caption_key: str) -> _Columns:
  """Which columns hold pictures and captions. Raises _SchemaError if there is no column of pictures."""
  kinds = {field.name: str(field.type) for field in schema}
  images = {name: kind.startswith('struct') for name, kind in kinds.items() if _holds_pictures(kind)}
  named = [name for name in _IMAGE_COLUMNS if name in images] or (list(images) if len(images) == 1 else [])
  if not named:
    columns = ', '.join(f'{name} ({kind})' for name, kind in kinds.items())
    raise _SchemaError(
      f'config.data.path: {shown(file)} has no column of pictures; its columns are {shown(columns, 300)}. Pictures are '
      'read from a column of bytes, or of structs with the field bytes, such as image.bytes.'
    )
  texts = [
    name
    for name, kind in kinds.items()
    if kind.removeprefix('large_') in ('string', 'string_view')
    or (kind.startswith(('list<', 'large_list<', 'dictionary<')) and 'string' in kind and 'struct<' not in kind)
  ]
  caption = next((name for name in dict.fromkeys((caption_key, *_CAPTION_COLUMNS)) if name in texts), None)
  if caption is None and len(texts) == 1:
    caption = texts[0]
  if caption is None and texts:
    raise _SchemaError(
      f'config.data.path: {shown(file)} has no column {caption_key!r} of captions; its columns of text are '
      f'{shown(", ".join(texts), 300)}. Set config.data.caption_key to one of them.'
    )
  return _Columns(named[0], images[named[0]], caption)


def _holds_pictures(kind: str) -> bool:
  return kind in ('binary', 'large_binary') or (kind.startswith('struct<') and 'bytes: ' in kind and 'binary' in kind)


def _captions(value: Any) -> list[str] | None:
  if value is None:
    return None
  texts = value if isinstance(value, list) else [value]
  return [cleaned for text in texts if isinstance(text, str) and not is_empty(cleaned := clean(text))]
