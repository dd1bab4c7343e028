"""A memory of pictures that were checked, so that a later start checks only new and changed ones.

It is one file of lines. The first line identifies the decoder and its limits; a memory of another decoder is not used.
Each line begins with its checksum. A damaged line is ignored, and its picture is checked again. The file may be deleted
at any time.
"""

import functools
import hashlib
import json
import os
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import features

from dalle_jax.data.pictures import colour_profiles, image, picture_files, png_chunks
from dalle_jax.data.pictures.stores import Stamp
from dalle_jax.files import write_whole

_FORMAT = 1
_DECODER = (image, picture_files, png_chunks, colour_profiles)
_FLUSH_LINES, _FLUSH_S = 2_000, 5.0  # new lines are written after this many lines or seconds
# A file may change again within the resolution of its time. A change younger than this is not remembered.
_YOUNGEST_S = 2.0


class Verdict(NamedTuple):
  """What the check found out about a picture."""

  digest: str  # SHA-256 of the file
  problem: str = ''  # why training cannot read it; '' if it can
  notes: tuple[str, ...] = ()  # what the file asks for and its pixels do not show


class CheckedPictures:
  """The verdicts on the pictures of a folder, by path and stamp. Use `with`: it stores new verdicts at the end."""

  def __init__(self, file: Path | None, max_pixels: int):
    """Reads the file of an earlier check, if it is there.

    Args:
      file: the file; None to remember nothing.
      max_pixels: the limit of pixels of the check.
    """
    self._file = file
    self._header = _line({'format': _FORMAT, 'decoder': _decoder(), 'max_pixels': max_pixels})
    self._known: dict[str, tuple[Stamp, Verdict]] = {}
    self._new: list[bytes] = []
    self._is_whole = False  # whether the file can be appended to
    self._flushed_at = time.monotonic()
    if file is not None:
      self._read(file)

  def __enter__(self) -> 'CheckedPictures':
    return self

  def __exit__(self, *exc: object) -> None:
    self.flush()

  def get(self, path: str, stamp: Stamp) -> Verdict | None:
    """The verdict on a picture, or None if it is new or has changed."""
    known = self._known.get(path)
    return known[1] if known and known[0] == stamp else None

  def add(self, path: str, stamp: Stamp, verdict: Verdict) -> None:
    """Remembers a verdict, unless the file has changed so recently that its time may not show another change."""
    if self._file is None or stamp.mtime_ns > time.time_ns() - _YOUNGEST_S * 1e9:
      return
    self._known[path] = (stamp, verdict)
    self._new.append(_line([path, *stamp, *verdict]))
    if len(self._new) >= _FLUSH_LINES or time.monotonic() - self._flushed_at > _FLUSH_S:
      self.flush()

  def flush(self) -> None:
    """Stores the new verdicts. A failure is ignored: the pictures are then checked again at the next start."""
    if self._file is None or not self._new:
      return
    lines, self._new, self._flushed_at = self._new, [], time.monotonic()
    try:
      if self._is_whole:
        with self._file.open('ab') as file:
          file.write(b''.join(lines))
      else:
        known = [_line([path, *stamp, *verdict]) for path, (stamp, verdict) in self._known.items()]
        write_whole(self._file, b''.join([self._header, *known]))
        self._is_whole = True
    except OSError:
      self._is_whole = False

  def _read(self, file: Path) -> None:
    try:
      with file.open('rb') as lines:
        if lines.readline() != self._header:
          return
        num_damaged = 0
        for line in lines:
          values = _parsed(line)
          if values is None:
            num_damaged += 1
          else:
            self._known[values[0]] = values[1:]
        self._is_whole = num_damaged == 0
    except OSError:
      self._known, self._is_whole = {}, False


def file_for(root: Path, directory: Path) -> Path:
  """The file in `directory` that remembers the pictures of a folder."""
  return directory / 'checked' / f'{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]}.jsonl'


def _line(value: object) -> bytes:
  text = json.dumps(value, separators=(',', ':')).encode()
  return b'%08x %s\n' % (zlib.crc32(text), text)


def _parsed(line: bytes) -> tuple[str, Stamp, Verdict] | None:
  """The path, stamp and verdict of a line; None if it is damaged."""
  try:
    checksum, text = line[:8], line[9:-1]
    if line[-1:] != b'\n' or int(checksum, 16) != zlib.crc32(text):
      return None
    path, size, mtime_ns, digest, problem, notes = json.loads(text)
    return path, Stamp(size, mtime_ns), Verdict(digest, problem, tuple(notes))
  except (ValueError, TypeError, RecursionError):
    return None


@functools.cache
def _decoder() -> str:
  """A hash of the code and the libraries that decode pictures."""
  digest = hashlib.sha256()
  for module in _DECODER:
    try:
      digest.update(Path(str(module.__file__)).read_bytes())
    except OSError:  # the package is not a folder of files
      digest.update(module.__name__.encode())
  versions = {name: features.version(name) for name in ('jpg', 'zlib', 'webp', 'libtiff', 'avif', 'littlecms2')}
  digest.update(f'{PIL.__version__} {versions}'.encode())
  return digest.hexdigest()
