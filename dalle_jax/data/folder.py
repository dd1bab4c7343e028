"""A folder of pictures with captions: finding them, checking them, and holding some out by name.

Three layouts are understood, searched in all subfolders:
  * `metadata.jsonl`, one object per line with `file_name` (relative to that file) and `text` or `caption`;
  * `metadata.csv` with the same columns;
  * without either, a `.txt` file beside each picture.
Where a picture has several captions (a list in the metadata, several lines in the `.txt`, several metadata lines) the
first one is used. Where metadata files exist, `.txt` files are not read.
"""

import csv
import hashlib
import io
import json
import os
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from PIL import Image

from dalle_jax.data.image import PILLOW_ERRORS, check_mode

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp', '.tif', '.tiff')
METADATA = ('metadata.jsonl', 'metadata.csv')
LAYOUT = (
  'Looked for metadata.jsonl or metadata.csv with lines such as\n'
  '  {"file_name": "images/cat.png", "text": "a cat on a mat"}\n'
  'and for pictures with a caption file beside them:\n'
  f'  cat.png  cat.txt   ({", ".join(EXTENSIONS)})'
)
_NAMES_SHOWN = 5


class Entry(NamedTuple):
  path: str  # of the picture, relative to the folder, with forward slashes
  caption: str


class FolderSource:
  """Random access to captioned pictures; a file is read when its record is asked for."""

  def __init__(self, root: Path, entries: list[Entry]):
    self._root = str(root)
    self._entries = entries

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path, caption = self._entries[index]
    return {'image': Path(self._root, path).read_bytes(), 'caption': caption, 'key': path}

  @property
  def entries(self) -> list[Entry]:
    """Paths and captions, without reading a picture."""
    return self._entries


def open_folder(
  root: str | os.PathLike,
  *,
  validation_fraction: float,
  group_separator: str = '',
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, FolderSource]:
  """Finds the captioned pictures, sets unreadable ones aside with a logged warning, and splits the rest by name.

  Args:
    root: the folder.
    validation_fraction: share of names held out, see `split_by_name`.
    group_separator: captions equal up to this text share a name; empty: the whole caption is the name.
    progress: called with (pictures checked, pictures in all).

  Returns:
    'train' and, where anything is held out, 'validation'.

  Raises:
    ValueError: no such folder, no captioned pictures, broken metadata, or no readable picture.
  """
  root = Path(root)
  entries = verify(root, scan(root), progress)
  train, validation = split_by_name(entries, validation_fraction, group_separator)
  splits = {'train': FolderSource(root, train)}
  if validation:
    splits['validation'] = FolderSource(root, validation)
  return splits


def scan(root: Path) -> list[Entry]:
  """Lists the captioned pictures of a folder by path, without opening them.

  Raises:
    ValueError: the folder is missing or unreadable, nothing captioned is in it, metadata is broken (with its line
      number) or leads out of the folder, or all the listed files are missing.
  """
  files = walk(root)
  metadata = [f for f in files if posixpath.basename(f) in METADATA]
  listed = [e for f in metadata for e in _read_metadata(root, f)] if metadata else _read_beside(root, files)
  captions: dict[str, str] = {}
  for path, caption in listed:
    captions.setdefault(path, caption)
  if len(captions) < len(listed):
    logging.warning('%s: %d further captions of the same pictures are not used.', root, len(listed) - len(captions))
  empty = [path for path, caption in captions.items() if not caption]
  _warn(root, 'pictures have an empty caption', empty)
  captioned = {path: caption for path, caption in captions.items() if caption}
  missing = [path for path in captioned if not os.path.isfile(root / path)]
  if captioned and len(missing) == len(captioned):
    raise ValueError(f'{root}: all {len(missing)} pictures listed in {metadata[0]} are missing: {_shorten(missing)}.')
  _warn(root, 'listed pictures are missing', missing)
  gone = set(missing)
  entries = [Entry(path, captioned[path]) for path in sorted(captioned) if path not in gone]
  if not entries:
    raise ValueError(f'config.data.path: no captioned pictures in {root}.\n{LAYOUT}')
  return entries


def verify(root: Path, entries: list[Entry], progress: Callable[[int, int], None] | None = None) -> list[Entry]:
  """Keeps the entries whose pictures can be read; the others are counted and named in a warning.

  Raises:
    ValueError: not one picture is readable.
  """
  good, bad = [], []
  for index, entry in enumerate(entries):
    (good if _is_readable(root / entry.path) else bad).append(entry)
    if progress:
      progress(index + 1, len(entries))
  paths = [entry.path for entry in bad]
  if not good:
    raise ValueError(f'config.data.path: none of the {len(bad)} pictures in {root} is readable: {_shorten(paths)}.')
  _warn(root, 'pictures cannot be decoded', paths)
  return good


def split_by_name(
  entries: list[Entry], validation_fraction: float, group_separator: str = ''
) -> tuple[list[Entry], list[Entry]]:
  """Splits into (train, validation) so that all pictures of one name are on one side.

  A name is held out when its hash, read as a number in [0, 1), lies below the fraction: adding pictures moves no old
  one across. Where there are two names or more, neither side is left empty, unless the fraction is 0: nothing is
  held out then.
  """
  positions = {name: _position(name) for name in {name_of(e.caption, group_separator) for e in entries}}
  held_out = {name for name, position in positions.items() if position < validation_fraction}
  ranked = sorted(positions, key=lambda name: (positions[name], name))
  if validation_fraction > 0 and len(ranked) > 1:
    held_out.add(ranked[0])
  held_out.discard(ranked[-1])
  sides: tuple[list[Entry], list[Entry]] = ([], [])
  for entry in entries:
    sides[name_of(entry.caption, group_separator) in held_out].append(entry)
  return sides


def name_of(caption: str, group_separator: str = '') -> str:
  """The part of a caption that decides its split: lower-cased, up to the separator (all of it if that is empty)."""
  caption = caption.lower()
  if group_separator:
    caption = caption.split(group_separator.lower(), 1)[0]
  return ' '.join(caption.split())


def _position(name: str) -> float:
  # 53 bits: exact as a float, and below 1.
  return (int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big') >> 11) / 2**53


def walk(root: Path, key: str = 'config.data.path') -> list[str]:
  """All files below the folder, sorted, as relative paths with forward slashes; hidden ones are left out.

  Raises:
    ValueError: a folder is missing or may not be read; `key` says where it was named.
  """
  if not os.path.isdir(root):  # unlike Path's, it takes a parent that may not be read for no
    raise ValueError(f'{key}: there is no folder {root}, or it may not be read.')
  files = []

  def refuse(error: OSError) -> None:
    raise ValueError(f'{key}: the folder {error.filename} cannot be read: {error.strerror}.') from error

  for folder, subfolders, names in os.walk(root, onerror=refuse):
    subfolders[:] = [name for name in subfolders if not name.startswith('.')]
    relative = Path(folder).relative_to(root)
    files += [(relative / name).as_posix() for name in names if not name.startswith('.')]
  return sorted(files)


def _read_beside(root: Path, files: list[str]) -> list[Entry]:
  present = set(files)
  entries = []
  for path in files:
    stem, extension = posixpath.splitext(path)
    if extension.lower() in EXTENSIONS and f'{stem}.txt' in present:
      lines = [_clean(line) for line in _read_text(root, f'{stem}.txt').splitlines()]
      entries.append(Entry(path, next(filter(None, lines), '')))
  return entries


def _read_metadata(root: Path, path: str) -> Iterator[Entry]:
  rows = _jsonl_rows if path.endswith('.jsonl') else _csv_rows
  for number, row in rows(_read_text(root, path), path):
    where = f'{path}, line {number}'
    name, caption = row.get('file_name'), row.get('text', row.get('caption'))
    if isinstance(caption, list):
      caption = caption[0] if caption else ''
    if not isinstance(name, str) or not name:
      raise ValueError(f'{where}: "file_name" is missing or not a text. {LAYOUT}')
    if not isinstance(caption, str):
      raise ValueError(f'{where}: neither "text" nor "caption" holds a text. {LAYOUT}')
    yield Entry(_inside(posixpath.dirname(path), name, where), _clean(caption))


def _jsonl_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  # Not splitlines: JSON strings may hold U+2028 and the like as they are.
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ValueError(f'{path}, line {number}: not JSON: {error}.') from error
    if not isinstance(row, dict):
      raise ValueError(f'{path}, line {number}: not a JSON object but {line.strip()[:60]!r}.')
    yield number, row


def _csv_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  reader = csv.DictReader(io.StringIO(text, newline=''), strict=True)
  try:
    for row in reader:
      yield reader.line_num, row
  except csv.Error as error:
    raise ValueError(f'{path}, line {reader.line_num}: not CSV: {error}.') from error


def _inside(folder: str, name: str, where: str) -> str:
  """The listed file's path relative to the data folder; refuses paths that lead out of it."""
  path = posixpath.normpath(posixpath.join(folder, name))
  if posixpath.isabs(path) or path.split('/')[0] == '..' or '\0' in path:
    raise ValueError(f'{where}: file_name {name!r} leads out of the folder; only files inside it are read.')
  return path


def _read_text(root: Path, path: str) -> str:
  try:
    return (root / path).read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(f'{root / path} is not UTF-8 text: {error}.') from error
  except OSError as error:
    raise ValueError(f'{root / path} cannot be read: {error.strerror}.') from error


def _clean(caption: str) -> str:
  # JSON can spell half of a surrogate pair, which no encoder accepts.
  return caption.strip().encode('utf-8', 'replace').decode()


def _is_readable(path: Path) -> bool:
  try:
    with Image.open(path) as image:
      if image.format == 'PNG':
        image.verify()  # checksums of all chunks
      else:
        # `verify` does nothing for other formats. JPEG decodes at an eighth of the size, and so cheaply.
        image.draft('RGB', (1, 1))
        image.load()
      check_mode(image)
  except PILLOW_ERRORS:
    return False
  return True


def _warn(root: Path, what: str, paths: list[str]) -> None:
  if paths:
    logging.warning('%s: %d %s and are skipped: %s.', root, len(paths), what, _shorten(paths))


def _shorten(paths: list[str]) -> str:
  more = f' and {len(paths) - _NAMES_SHOWN} more' if len(paths) > _NAMES_SHOWN else ''
  return ', '.join(paths[:_NAMES_SHOWN]) + more
