"""A folder of captioned images: list them, check that they can be read, and split them by `name_of`.

Captions come from one of three layouts. All subfolders are searched.
  * `metadata.jsonl`: one JSON object per line, with the keys `file_name` and `text` or `caption`. The file name is
    relative to the metadata file.
  * `metadata.csv`: the same keys as columns.
  * A `.txt` file beside each image. These are read only if there is no metadata file.

Only the first caption of an image is used. An image can have several captions in a metadata list, in several metadata
lines, or in several lines of its `.txt` file.
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
  'and for images with a caption file beside them:\n'
  f'  cat.png  cat.txt   ({", ".join(EXTENSIONS)})'
)
_NAMES_SHOWN = 5


class Entry(NamedTuple):
  """An image file and its caption."""

  path: str  # the image's path relative to the folder, with forward slashes
  caption: str


class FolderSource:
  """Random access to the records of captioned images. An image file is read when its record is requested."""

  def __init__(self, root: Path, entries: list[Entry]):
    self._root = str(root)
    self._entries = entries

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path, caption = self._entries[index]
    return {'image': Path(self._root, path).read_bytes(), 'caption': caption, 'key': path}

  def name(self, index: int) -> str:
    """The path of a record's image. Reads no image."""
    return self._entries[index].path

  def caption(self, index: int) -> str:
    """The caption of a record. Reads no image."""
    return self._entries[index].caption

  @property
  def entries(self) -> list[Entry]:
    """The paths and captions of all records. Reads no image."""
    return self._entries


def open_folder(
  root: str | os.PathLike,
  *,
  validation_fraction: float,
  group_separator: str = '',
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, FolderSource]:
  """Lists the captioned images, skips unreadable ones with a warning, and splits the rest by name.

  Args:
    root: the folder.
    validation_fraction: share of names to hold out, see `split_by_name`.
    group_separator: captions that are equal up to this text have the same name. Empty: the whole caption is the name.
    progress: called with (number of images checked, number of images).

  Returns:
    The sources of 'train' and 'validation'. There is no 'validation' if nothing is held out.

  Raises:
    ValueError: the folder does not exist, has no captioned images or no readable image, or its metadata is invalid.
  """
  root = Path(root)
  entries = verify(root, scan(root), progress)
  train, validation = split_by_name(entries, validation_fraction, group_separator)
  splits = {'train': FolderSource(root, train)}
  if validation:
    splits['validation'] = FolderSource(root, validation)
  return splits


def scan(root: Path) -> list[Entry]:
  """Lists the captioned images of a folder, sorted by path, without opening them.

  Images with an empty caption and listed files that do not exist are skipped with a warning.

  Raises:
    ValueError: the folder is missing or unreadable, it has no captioned image, all listed files are missing, or a
      metadata line (named in the message) is invalid or names a file outside the folder.
  """
  files = walk(root)
  metadata = [f for f in files if posixpath.basename(f) in METADATA]
  listed = [e for f in metadata for e in _read_metadata(root, f)] if metadata else _read_caption_files(root, files)
  captions: dict[str, str] = {}
  for path, caption in listed:
    captions.setdefault(path, caption)
  if len(captions) < len(listed):
    logging.warning('%s: %d further captions of the same images are not used.', root, len(listed) - len(captions))
  uncaptioned = [path for path, caption in captions.items() if not caption]
  _warn_skipped(root, 'images have an empty caption', uncaptioned)
  captioned = {path: caption for path, caption in captions.items() if caption}
  missing = [path for path in captioned if not os.path.isfile(root / path)]
  if captioned and len(missing) == len(captioned):
    raise ValueError(f'{root}: all {len(missing)} images listed in {metadata[0]} are missing: {_shorten(missing)}.')
  _warn_skipped(root, 'listed images are missing', missing)
  missing_paths = set(missing)
  entries = [Entry(path, captioned[path]) for path in sorted(captioned) if path not in missing_paths]
  if not entries:
    raise ValueError(f'config.data.path: no captioned images in {root}.\n{LAYOUT}')
  return entries


def verify(root: Path, entries: list[Entry], progress: Callable[[int, int], None] | None = None) -> list[Entry]:
  """Returns the entries whose images can be decoded. A warning gives the number and some names of the others.

  Raises:
    ValueError: no image can be decoded.
  """
  readable: list[Entry] = []
  unreadable: list[Entry] = []
  for index, entry in enumerate(entries):
    (readable if _is_readable(root / entry.path) else unreadable).append(entry)
    if progress:
      progress(index + 1, len(entries))
  paths = [entry.path for entry in unreadable]
  if not readable:
    raise ValueError(f'config.data.path: none of the {len(paths)} images in {root} is readable: {_shorten(paths)}.')
  _warn_skipped(root, 'images cannot be decoded', paths)
  return readable


def split_by_name(
  entries: list[Entry], validation_fraction: float, group_separator: str = ''
) -> tuple[list[Entry], list[Entry]]:
  """Splits entries into (train, validation) so that images with the same name are in the same split.

  A name is held out if its hash, read as a number in [0, 1), is below `validation_fraction`. Adding images to the
  folder therefore does not move other images to another split.

  Two exceptions keep both splits non-empty. The name with the highest hash is never held out. The name with the lowest
  hash is always held out if there are several names and `validation_fraction` is above 0.
  """
  positions = {name: _position(name) for name in {name_of(e.caption, group_separator) for e in entries}}
  held_out = {name for name, position in positions.items() if position < validation_fraction}
  ranked = sorted(positions, key=lambda name: (positions[name], name))
  if validation_fraction > 0 and len(ranked) > 1:
    held_out.add(ranked[0])
  held_out.discard(ranked[-1])
  splits: tuple[list[Entry], list[Entry]] = ([], [])
  for entry in entries:
    splits[name_of(entry.caption, group_separator) in held_out].append(entry)
  return splits


def name_of(caption: str, group_separator: str = '') -> str:
  """Returns the name of a caption, which decides its split: the lower-cased text before the separator.

  The whole caption is the name if it does not contain the separator, or if the separator is empty.
  """
  caption = caption.lower()
  if group_separator:
    caption = caption.split(group_separator.lower(), 1)[0]
  return ' '.join(caption.split())


def _position(name: str) -> float:
  """The name's hash as a number in [0, 1)."""
  # 53 bits, because a float holds 53 bits exactly. With 64, the result could round up to 1.
  return (int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big') >> 11) / 2**53


def walk(root: Path, key: str = 'config.data.path') -> list[str]:
  """Lists all files below a folder, sorted, as relative paths with forward slashes. Skips hidden files and folders.

  Args:
    root: the folder.
    key: the flag or configuration key that names the folder, for messages.

  Raises:
    ValueError: the folder does not exist, or a folder cannot be read.
  """
  # os.path.isdir returns False if a parent folder cannot be read. Path.is_dir can raise instead.
  if not os.path.isdir(root):
    raise ValueError(f'{key}: there is no folder {root}, or it cannot be accessed.')
  files = []

  def refuse(error: OSError) -> None:
    raise ValueError(f'{key}: the folder {error.filename} cannot be read: {error.strerror}.') from error

  for folder, subfolders, names in os.walk(root, onerror=refuse):
    subfolders[:] = [name for name in subfolders if not name.startswith('.')]
    relative = Path(folder).relative_to(root)
    files += [(relative / name).as_posix() for name in names if not name.startswith('.')]
  return sorted(files)


def _read_caption_files(root: Path, files: list[str]) -> list[Entry]:
  """Entries of the images that have a `.txt` file beside them, with its first non-empty line as the caption."""
  existing = set(files)
  entries = []
  for path in files:
    stem, extension = posixpath.splitext(path)
    if extension.lower() in EXTENSIONS and f'{stem}.txt' in existing:
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
      raise ValueError(f'{where}: "file_name" is missing or not a string. {LAYOUT}')
    if not isinstance(caption, str):
      raise ValueError(f'{where}: neither "text" nor "caption" holds a string. {LAYOUT}')
    yield Entry(_inside(posixpath.dirname(path), name, where), _clean(caption))


def _jsonl_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  # Not splitlines(): it also splits at U+2028 and similar characters, which JSON strings may contain unescaped.
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
  """Returns the path of a listed file relative to the data folder. Raises ValueError if it is outside that folder.

  Args:
    folder: the metadata file's folder, relative to the data folder.
    name: the listed `file_name`.
    where: the metadata file and line, for the message.
  """
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
  # JSON can encode half of a surrogate pair, which cannot be encoded as UTF-8. It becomes '?'.
  return caption.strip().encode('utf-8', 'replace').decode()


def _is_readable(path: Path) -> bool:
  try:
    with Image.open(path) as image:
      if image.format == 'PNG':
        image.verify()  # checks the checksums of all chunks without decoding
      else:
        # `verify` does nothing for other formats, so decode. `draft` makes JPEG cheap: it decodes at 1/8 of the size.
        image.draft('RGB', (1, 1))
        image.load()
      check_mode(image)
  except PILLOW_ERRORS:
    return False
  return True


def _warn_skipped(root: Path, reason: str, paths: list[str]) -> None:
  if paths:
    logging.warning('%s: %d %s and are skipped: %s.', root, len(paths), reason, _shorten(paths))


def _shorten(paths: list[str]) -> str:
  more = f' and {len(paths) - _NAMES_SHOWN} more' if len(paths) > _NAMES_SHOWN else ''
  return ', '.join(paths[:_NAMES_SHOWN]) + more
