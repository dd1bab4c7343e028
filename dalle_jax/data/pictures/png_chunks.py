"""The chunks of a PNG file: their checksums, and the facts that Pillow does not report or reads without bounds."""

import math
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

SIGNATURE = b'\x89PNG\r\n\x1a\n'
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_GREY, _RGB, _PALETTE = 0, 2, 3
_MAX_EXPANSION = 1032  # deflate writes at most 258 bytes for 2 bits
_MAX_TEXT, _MAX_PROFILE = 1 << 20, 1 << 24  # bytes after decompression
# Adam7: the first column and row of each pass, and the distance to the next column and row.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_TEXTS = (b'tEXt', b'zTXt', b'iTXt')
# Text that may hold the orientation.
_ORIENTATION_TEXT = (b'XML:com.adobe.xmp', b'Raw profile type exif')


class Png(NamedTuple):
  """What the chunks of a PNG file say."""

  cleaned: bytes  # the file without text, animation, colour space and transparent colours outside palettes
  columns: int
  rows: int
  depth: int  # bits per channel
  colour_type: int
  interlaced: bool
  data: tuple[bytes, ...]  # the compressed rows, the contents of the IDAT chunks
  key: tuple[int, ...] | None  # the transparent colour, one number or three
  frames: int
  texts: tuple[tuple[bytes, bytes], ...]  # kinds and contents of the text chunks
  profile: bytes | None  # an ICC profile; empty if it cannot be decompressed
  colour_notes: tuple[str, ...]  # other statements of a colour space than sRGB

  @property
  def num_bytes(self) -> int:
    """The size of the rows after decompression."""
    if not self.interlaced:
      return self.rows * self._row_bytes(self.columns)
    return sum(
      -(-(self.rows - top) // down) * self._row_bytes(-(-(self.columns - left) // right))
      for left, top, right, down in _PASSES
      if self.columns > left and self.rows > top
    )

  def _row_bytes(self, columns: int) -> int:
    """The bytes of a row, which begins with the number of its filter."""
    return 1 + -(-columns * self.depth * _CHANNELS[self.colour_type] // 8)

  def text(self) -> dict[str, str]:
    """The text entries. Texts that are damaged, or compressed and large, are empty."""
    return {
      content.partition(b'\0')[0].decode('latin-1'): _text(kind, content).decode(
        'utf-8' if kind == b'iTXt' else 'latin-1', 'replace'
      )
      for kind, content in self.texts
    }

  def check_capacity(self) -> None:
    """Check that the file is large enough for its size in pixels, before memory is taken for them.

    Raises:
      ValueError: its rows could not be compressed to so few bytes.
    """
    compressed = sum(map(len, self.data))
    if self.num_bytes > _MAX_EXPANSION * (compressed + 64):
      raise ValueError(
        f'its header claims {self.columns:,} x {self.rows:,} pixels, which its {compressed:,} bytes of compressed '
        'pixels cannot hold'
      )

  def check_rows(self, image: Image.Image) -> None:
    """Check that no row was missing. Pillow leaves missing rows black if the compressed data end in order.

    Args:
      image: the decoded picture. If its last row is not black, this row was there, and nothing is decompressed again.

    Raises:
      ValueError: rows are missing.
    """
    if not self.interlaced and np.asarray(image.crop((0, self.rows - 1, self.columns, self.rows))).any():
      return
    inflater, left = zlib.decompressobj(), self.num_bytes
    for part in self.data:
      while part and left > 0:
        left -= len(inflater.decompress(part, 1 << 18))
        part = inflater.unconsumed_tail
    if left > 0 and left > len(inflater.flush()):
      raise ValueError(f'rows are missing: {left:,} of {self.num_bytes:,} bytes of pixels')


def read(data: bytes) -> Png:
  """Read the chunks of a PNG file and check their checksums.

  Raises:
    ValueError: a chunk is damaged, misplaced or cut off.
  """
  kept: list[bytes] = [SIGNATURE]
  rows: list[bytes] = []
  texts: list[tuple[bytes, bytes]] = []
  found: dict[bytes, bytes] = {}  # the first chunk of each kind before the rows
  frames_before_rows = 0
  for number, (kind, content, chunk) in enumerate(_chunks(data)):
    if (kind == b'IHDR') != (number == 0):
      raise ValueError('its IHDR chunk is missing or misplaced')
    if kind == b'IDAT':
      rows.append(content)
    elif not rows:
      frames_before_rows += kind == b'fcTL'
      found.setdefault(kind, content)
    if kind in _TEXTS:
      texts.append((kind, content))
    if _is_kept(kind, content, found[b'IHDR']):
      kept.append(chunk)
  header = found[b'IHDR']
  if len(header) != 13:
    raise ValueError(f'its IHDR chunk has {len(header)} bytes instead of 13')
  columns, height, depth, colour_type, _, _, interlace = struct.unpack('>IIBBBBB', header)
  if colour_type not in _CHANNELS or depth not in (1, 2, 4, 8, 16):
    raise ValueError(f'its IHDR chunk has the colour type {colour_type} with {depth} bits')
  num_frames = int.from_bytes(found.get(b'acTL', b'')[:4], 'big')
  return Png(
    cleaned=b''.join(kept),
    columns=columns,
    rows=height,
    depth=depth,
    colour_type=colour_type,
    interlaced=bool(interlace),
    data=tuple(rows),
    key=_key(found.get(b'tRNS'), colour_type, depth),
    frames=max(1, num_frames + (num_frames > 0 and not frames_before_rows)),
    texts=tuple(texts),
    profile=_profile(found.get(b'iCCP')),
    colour_notes=_colour_notes(found),
  )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
  """Yield each chunk up to IEND: its kind, its content, and all of its bytes."""
  position, kind = len(SIGNATURE), b''
  while kind != b'IEND':
    if position + 12 > len(data):
      raise ValueError('it is cut off before its end')
    length, kind = struct.unpack_from('>I4s', data, position)
    end = position + 12 + length
    if not re.fullmatch(rb'[A-Za-z]{4}', kind):
      raise ValueError(f'it is damaged at byte {position:,}')
    if end > len(data):
      raise ValueError(f'it is cut off inside its {kind.decode()} chunk')
    content = data[position + 8 : end - 4]
    if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end], 'big'):
      raise ValueError(f'its {kind.decode()} chunk at byte {position:,} is damaged: its checksum differs')
    yield kind, content, data[position:end]
    position = end


def _is_kept(kind: bytes, content: bytes, header: bytes) -> bool:
  """Whether Pillow needs a chunk: critical ones, transparency of palettes, and what may hold the orientation."""
  if kind == b'tRNS':
    return header[9:10] == bytes([_PALETTE])
  if kind in _TEXTS:
    return content.startswith(_ORIENTATION_TEXT) and 0 < len(_text(kind, content)) <= _MAX_TEXT
  return kind[:1].isupper() or kind == b'eXIf'


def _text(kind: bytes, content: bytes) -> bytes:
  """The text of a text chunk; empty if it is damaged, or is compressed and has more than `_MAX_TEXT` bytes."""
  rest = content.partition(b'\0')[2]
  if kind == b'tEXt':
    return rest
  if kind == b'zTXt':
    return _inflated(rest[1:], _MAX_TEXT) or b''
  text = rest[2:].split(b'\0', 2)[-1]  # after a language and a translated keyword
  return (_inflated(text, _MAX_TEXT) or b'') if rest[:1] == b'\1' else text


def _inflated(packed: bytes, most: int) -> bytes | None:
  """Decompress at most `most` bytes. None if there are more, or if the data are damaged."""
  inflater = zlib.decompressobj()
  try:
    content = inflater.decompress(packed, most)
  except zlib.error:
    return None
  return content if inflater.eof else None


def _key(content: bytes | None, colour_type: int, depth: int) -> tuple[int, ...] | None:
  """The transparent colour of a grey or RGB picture, in its own bits per channel. A smaller depth uses the low bits.

  Raises:
    ValueError: the chunk is cut short.
  """
  if content is None or colour_type not in (_GREY, _RGB):
    return None
  channels = _CHANNELS[colour_type]
  if len(content) < 2 * channels:
    raise ValueError(f'its tRNS chunk has {len(content)} bytes instead of {2 * channels}')
  return tuple(value & (1 << depth) - 1 for value in struct.unpack_from(f'>{channels}H', content))


def _profile(content: bytes | None) -> bytes | None:
  if content is None:
    return None
  return _inflated(content.partition(b'\0')[2][1:], _MAX_PROFILE) or b''


def _colour_notes(found: dict[bytes, bytes]) -> tuple[str, ...]:
  """Which chunks state another colour space than sRGB, by the specification's order of precedence."""
  if b'cICP' in found:
    srgb = found[b'cICP'][:2] in (b'\1\x0d', b'\1\1')
    return () if srgb else ('colour space of cICP not converted',)
  if b'iCCP' in found or b'sRGB' in found:
    return ()
  notes = []
  if len(found.get(b'gAMA', b'')) == 4:
    gamma = int.from_bytes(found[b'gAMA'], 'big') / 100_000
    if gamma > 0 and abs(math.log(gamma * 2.2)) > 0.05:
      notes.append(f'gamma {gamma:.5g} not converted')
  if len(found.get(b'cHRM', b'')) == 32:
    values = struct.unpack('>8I', found[b'cHRM'])
    srgb_values = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    if max(abs(a - b) for a, b in zip(values, srgb_values, strict=True)) > 1000:
      notes.append('primaries of cHRM not converted')
  return tuple(notes)
