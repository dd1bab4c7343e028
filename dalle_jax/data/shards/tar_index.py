"""Index of a tar file of pictures and captions, as WebDataset and img2dataset write them.

The members of a sample have the same path up to the first dot of the file name: `00012.jpg`, `00012.txt`, `00012.json`.
A caption is the text of the `.txt` member, or else "caption" or "text" of the `.json` member. Nothing is extracted.
"""

import contextlib
import json
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dalle_jax.data.pictures.image import EXTENSIONS
from dalle_jax.data.pictures.stores import Stamp
from dalle_jax.data.sources.metadata_files import CAPTION_KEYS, clean
from dalle_jax.data.text.caption_text import decoded, is_empty
from dalle_jax.files import parse_json_object, shown, write_json

_FORMAT = 1
MOST_CAPTION_BYTES = 2**20  # of a member with captions
_COMPRESSED = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
_BLOCK = 512  # bytes; a block of zeros ends a tar file


class TarPicture(NamedTuple):
  """A picture of a tar file."""

  name: str  # of the member
  offset: int  # bytes before its contents
  size: int  # bytes
  captions: list[str] | None  # None if it has none


class TarIndex(NamedTuple):
  """What a tar file holds."""

  stamp: Stamp  # of the tar file
  pictures: list[TarPicture]
  left_out: list[tuple[str, str]]  # pictures that cannot be used: reason and name
  notes: list[tuple[str, str]]  # facts and names


class _Member(NamedTuple):
  name: str
  offset: int
  size: int


def index_of(file: Path, memory: Path | None = None) -> TarIndex:
  """Find the pictures of a tar file and their captions.

  Args:
    file: the tar file, not compressed.
    memory: keeps the index for later starts. It may be deleted at any time, and is made again if the tar changes.

  Raises:
    ValueError: the file is not a tar file, or is compressed. The message is the rest of a sentence about it.
    OSError: it cannot be read.
  """
  stamp = Stamp.of(file.stat())
  if memory is not None and (kept := _kept(memory, stamp)):
    return kept
  index = _scan(file)
  if memory is not None and index.stamp == stamp:
    content = index._asdict()
    with contextlib.suppress(OSError):  # indexed again at the next start
      write_json(memory, {'format': _FORMAT, 'content': content, 'checksum': _checksum(content)})
  return index


def _scan(path: Path) -> TarIndex:
  with path.open('rb') as file:
    stamp = Stamp.of(os.fstat(file.fileno()))
    _check_beginning(file.read(8))
    file.seek(0)
    index = TarIndex(stamp, [], [], [])
    samples: dict[str, dict[str, _Member]] = {}
    try:
      for member in _members(file, stamp.size, index):
        _sort(member, samples, index)
    except tarfile.TarError as error:
      if not samples:
        raise ValueError(f'is not a readable tar file: {shown(error, 100)}') from error
      index.notes.append(('a tar file that is cut or damaged; its members up to there are used', path.name))
    for parts in samples.values():
      _add(file.fileno(), parts, index)
  return index


def _check_beginning(beginning: bytes) -> None:
  for magic, name in _COMPRESSED.items():
    if beginning.startswith(magic):
      raise ValueError(f'is compressed with {name}, which allows no random access; decompress it')


def _members(file: Any, total: int, index: TarIndex) -> Iterator[_Member]:
  """The regular members whose contents are complete. Raises tarfile.TarError where the tar file is cut or damaged."""
  with tarfile.open(fileobj=file, mode='r:') as tar:
    last = -1
    while (info := tar.next()) is not None:
      tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
      if info.offset <= last or info.size < 0:
        raise tarfile.ReadError('a header leads backwards')
      last = info.offset
      name = posixpath.normpath(info.name)
      if info.isdir():
        continue
      if not info.isreg() or info.sparse is not None:
        index.notes.append(('a member that is no regular file', name))
        continue
      if info.offset_data + info.size > total:
        raise tarfile.ReadError('unexpected end of data')
      yield _Member(name, info.offset_data, info.size)
    end = tar.offset
  file.seek(end)
  if len(block := file.read(_BLOCK)) < _BLOCK or any(block):
    raise tarfile.ReadError('no end mark')


def _sort(member: _Member, samples: dict[str, dict[str, _Member]], index: TarIndex) -> None:
  """Adds a member to its sample. A sample has at most one picture and one member of each other kind."""
  folder, base = posixpath.split(member.name)
  stem, _, extension = base.partition('.')
  extension = f'.{extension.lower()}'
  is_picture = extension in EXTENSIONS
  if base.startswith('.') or not (is_picture or extension in ('.txt', '.json')):
    index.notes.append(('a member that is neither a picture nor a caption', member.name))
    return
  parts = samples.setdefault(posixpath.join(folder, stem), {})
  kind = 'picture' if is_picture else extension
  if kind not in parts:
    parts[kind] = member
  elif is_picture:
    index.left_out.append(('its tar file has another picture with the same key before it', member.name))
  else:
    index.notes.append(('a second caption member with the same key, which is not read', member.name))


def _add(descriptor: int, parts: dict[str, _Member], index: TarIndex) -> None:
  """Adds the picture of a sample with its captions."""
  picture = parts.get('picture')
  if picture is None:
    index.notes.append(('a caption without a picture', next(iter(parts.values())).name))
    return
  captions, problem = None, ''
  for kind, read in (('.txt', _text_captions), ('.json', _json_captions)):
    if kind in parts and not captions:
      try:
        captions = read(_contents(descriptor, parts[kind]))
      except ValueError as error:
        problem = f'its {kind} member {error}'
  if problem and not captions:
    index.left_out.append((problem, picture.name))
  else:
    index.pictures.append(TarPicture(*picture, captions))


def _contents(descriptor: int, member: _Member) -> bytes:
  if member.size > MOST_CAPTION_BYTES:
    raise ValueError(f'has more than {MOST_CAPTION_BYTES:,} bytes')
  return os.pread(descriptor, member.size, member.offset)


def _text_captions(content: bytes) -> list[str]:
  return [text for line in decoded(content).splitlines() if not is_empty(text := clean(line))]


def _json_captions(content: bytes) -> list[str] | None:
  try:
    values = parse_json_object(content, allow_nan=True)
  except ValueError as error:
    raise ValueError(f'is not a JSON object: {shown(error, 100)}') from None
  found = [values[key] for key in CAPTION_KEYS if values.get(key) is not None]
  texts = [text for value in found for text in (value if isinstance(value, list) else [value])]
  if not all(isinstance(text, str) for text in texts):
    raise ValueError(f'has a caption that is not a string: {shown(repr(found), 60)}')
  return [cleaned for text in texts if not is_empty(cleaned := clean(text))] if found else None


def _kept(memory: Path, stamp: Stamp) -> TarIndex | None:
  """The index in a file; None if it is missing or damaged, or of another state of the tar file."""
  try:
    stored = json.loads(memory.read_bytes())
    content = stored['content']
    if stored['format'] != _FORMAT or Stamp(*content['stamp']) != stamp or stored['checksum'] != _checksum(content):
      return None
    pairs = ([(str(reason), str(name)) for reason, name in content[kind]] for kind in ('left_out', 'notes'))
    return TarIndex(stamp, [TarPicture(*picture) for picture in content['pictures']], *pairs)
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None


def _checksum(content: Any) -> int:
  return zlib.crc32(json.dumps(content).encode())
