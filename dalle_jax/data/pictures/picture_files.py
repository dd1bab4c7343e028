"""Open picture files: a closed list of formats, a limit of pixels, and no other reader of Pillow's.

Pillow chooses a reader by a file's contents. Some of its readers start programs: the one for PostScript runs
Ghostscript, which executes the file. This module is the only one that opens pictures.
"""

import contextlib
import io
import logging
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from dalle_jax.data.pictures import png_chunks
from dalle_jax.files import shown

# Pillow warns about metadata that we do not use, and prints parts of damaged files. Damaged pixels still raise errors.
warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')
logging.getLogger('PIL').setLevel(logging.CRITICAL)

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.avif')
# Pillow's own limit, about 9,459 x 9,459 pixels, or 270 MB as RGB. Cameras stay below it, up to 80 megapixels, and the
# few buffers of a decoder for such a picture fit into the memory of a small machine.
MAX_PIXELS = 89_478_485
# The exceptions that Pillow's readers raise for damaged or malicious files.
PILLOW_ERRORS = (
  OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError,
  RuntimeError, AssertionError, SystemError, Warning, struct.error, zlib.error,
  Image.DecompressionBombError,
)  # fmt: skip

# The formats that are read, by Pillow's names, and how their files begin.
_FORMATS = {
  'PNG': rb'\x89PNG\r\n\x1a\n', 'JPEG': rb'\xff\xd8\xff', 'WEBP': rb'RIFF.{4}WEBP', 'GIF': rb'GIF8[79]a', 'BMP': rb'BM',
  'TIFF': rb'II[*+]\0|MM\0[*+]', 'AVIF': rb'.{4}ftyp(?:avi[fs]|m(?:if|sf)1.{4}(?:.{4}){0,12}?avi[fs])',
}  # fmt: skip
_NAMES = 'PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF'
# How files of other formats begin that people take for pictures, so that the error message can name the format.
_OTHERS = {
  'PostScript': rb'\x04?%!|\xc5\xd0\xd3\xc6', 'PDF': rb'%PDF', 'WMF': rb'\xd7\xcd\xc6\x9a|[\x01\x02]\0\t\0\0',
  'EMF': rb'\x01\0\0\0.{36} EMF', 'HEIC': rb'.{4}ftyp(?:hei|hev|mif1|msf1)',
  'JPEG 2000': rb'\0\0\0\x0cjP|\xff\x4f\xff\x51', 'JPEG XL': rb'\xff\n|\0\0\0\x0cJXL ', 'Photoshop': rb'8BPS',
  'Windows icon or TGA': rb'\0\0[\x01\x02]\0', 'macOS icon': rb'icns', 'netpbm': rb'P[1-7fFy][\s#]', 'DDS': rb'DDS ',
  'FITS': rb'SIMPLE  =', 'QOI': rb'qoif', 'MNG': rb'\x8a[MJ]NG\r\n',
  'XPM': rb'/\* XPM', 'XBM': rb'#define ', 'HDF5': rb'\x89HDF', 'OpenEXR': rb'v/1\x01', 'Radiance': rb'#\?RADIANCE',
  'Git LFS pointer': rb'version https://git-lfs', 'gzip': rb'\x1f\x8b', 'zip': rb'PK\x03\x04',
  'SGI': rb'\x01\xda[\0\x01][\x01\x02]',
  'SVG': rb'(?:\xef\xbb\xbf)?\s*<(?:\?xml|!--|svg|!doctype svg)', 'HTML': rb'(?:\xef\xbb\xbf)?\s*<(?:!doctype )?html',
}  # fmt: skip


class Opened(NamedTuple):
  """A picture whose header was read and checked, and whose pixels were not decoded."""

  image: Image.Image
  format: str  # one of Pillow's names
  png: png_chunks.Png | None  # what the header of a PNG file says


def most_bytes(max_pixels: int) -> int:
  """The largest size in bytes of a file that is read: 16 bytes for each pixel of one frame, and 256 MiB of metadata."""
  return 16 * max_pixels + 2**28


def format_of(data: bytes) -> str:
  """The format of a picture file, one of Pillow's names, by its first bytes.

  Raises:
    ValueError: the format is not in the list of formats that are read. The message names it.
  """
  for name, start in _FORMATS.items():
    if re.match(start, data[:64], re.DOTALL):
      return name
  if not data:
    raise ValueError(f'it is empty; a picture must be one of {_NAMES}')
  for name, start in _OTHERS.items():
    if re.match(start, data[:64], re.DOTALL | re.IGNORECASE):
      raise ValueError(f'its contents are {name}, which is not read; a picture must be one of {_NAMES}')
  raise ValueError(f'it begins with {data[:8]!r}, which is no known picture format; a picture must be one of {_NAMES}')


@contextlib.contextmanager
def opened(data: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Opened]:
  """Open a picture and check its size. The caller decodes the pixels with `load` inside the `with` block.

  Args:
    data: the contents of the file.
    max_pixels: the largest number of pixels, rows times columns.

  Raises:
    ValueError: the format is not read, the picture has more pixels or is damaged. This also replaces every error that
      Pillow raises inside the `with` block.
  """
  try:
    kind = format_of(data)
    png = png_chunks.read(data) if kind == 'PNG' else None
    check_size(_header_size(kind, data), max_pixels)
    if png:
      png.check_capacity()
    if kind == 'JPEG':
      _check_jpeg_capacity(data, max_pixels)
    with _pillow_limit.lifted(), Image.open(io.BytesIO(png.cleaned if png else data), formats=[kind]) as image:
      check_size(image.size, max_pixels)
      _check_tiles(image, max_pixels)
      yield Opened(image, kind, png)
  except Image.UnidentifiedImageError:
    raise ValueError(f'cannot decode the image ({len(data)} bytes): its {kind} header is damaged or unknown') from None
  except PILLOW_ERRORS as error:
    raise ValueError(f'cannot decode the image ({len(data)} bytes): {_problem(error)}') from error


def _problem(error: Exception) -> str:
  """What is wrong with a picture, in words."""
  text = str(error)
  if 'image file is truncated' in text or isinstance(error, EOFError):
    return 'its pixels end before its last row, so that the file is cut off or damaged'
  if isinstance(error, LookupError | TypeError | AttributeError | AssertionError | struct.error):
    return 'it is damaged'  # their texts are about Pillow's program
  return shown(text, 400) or 'it is damaged'


def load(picture: Opened) -> Image.Image:
  """Decode the pixels of an opened picture. Raises ValueError if rows of a PNG are missing, besides Pillow's errors."""
  picture.image.load()
  if picture.png:
    picture.png.check_rows(picture.image)
  return picture.image


def check_size(size: tuple[int, int] | None, max_pixels: int) -> None:
  """Check a picture's size, (columns, rows). None, for unknown, passes.

  Raises:
    ValueError: it has no pixels, or more than `max_pixels`.
  """
  if size and size[0] * size[1] > max_pixels:
    raise ValueError(
      f'it has {size[0]:,} x {size[1]:,} pixels, more than the limit of {max_pixels:,}; raise the limit with '
      '--max_image_pixels, or config.data.max_image_pixels for training'
    )
  if size and not size[0] * size[1]:
    raise ValueError(f'it has {size[0]} x {size[1]} pixels; a picture needs at least one')


def _header_size(kind: str, data: bytes) -> tuple[int, int] | None:
  """Columns and rows, for the formats whose readers take memory for the picture as soon as they open it."""
  if kind == 'PNG':
    return struct.unpack_from('>II', data, 16)
  if kind == 'WEBP':
    return _webp_size(data)
  return _gif_size(data) if kind == 'GIF' else None


def _check_jpeg_capacity(data: bytes, max_pixels: int) -> None:
  """Check the size that a JPEG's header claims, and that the file is large enough for it.

  Huffman coding takes at least one bit for each block of 8 x 8 values, and the sampling factors are at most 4 x 4.
  Arithmetic coding has no such limit.

  Raises:
    ValueError: it claims too many pixels, or its pixels could not be compressed to so few bytes.
  """
  position = 2
  while data[position : position + 1] == b'\xff' and len(data) >= position + 9:
    marker = data[position + 1]
    if marker in (0xC0, 0xC1, 0xC2):
      rows, columns = struct.unpack_from('>HH', data, position + 5)
      check_size((columns, rows), max_pixels)
      if rows * columns > 8 * len(data) * 8 * 8 * 4 * 4:
        raise ValueError(f'its header claims {columns:,} x {rows:,} pixels, which its {len(data):,} bytes cannot hold')
    if marker == 0xFF:  # a fill byte
      position += 1
    elif marker in (0xD9, 0xDA):  # the end, or the pixels
      return
    else:
      position += 2 + int.from_bytes(data[position + 2 : position + 4], 'big')


def _webp_size(data: bytes) -> tuple[int, int] | None:
  if data[12:16] == b'VP8X' and len(data) >= 30:
    return int.from_bytes(data[24:27], 'little') + 1, int.from_bytes(data[27:30], 'little') + 1
  if data[12:16] == b'VP8L' and len(data) >= 25:
    bits = int.from_bytes(data[21:25], 'little')
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
  if data[12:16] == b'VP8 ' and len(data) >= 30:
    columns, rows = struct.unpack_from('<HH', data, 26)
    return columns & 0x3FFF, rows & 0x3FFF
  return None


def _gif_size(data: bytes) -> tuple[int, int] | None:
  """The size of the screen, extended to the first frame, as Pillow does."""
  if len(data) < 13:
    return None
  columns, rows, flags = struct.unpack_from('<HHB', data, 6)
  position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
  while data[position : position + 1] == b'!':  # extensions: a label, and blocks up to an empty one
    position += 2
    while position < len(data) and data[position]:
      position += 1 + data[position]
    position += 1
  if data[position : position + 1] == b',' and len(data) >= position + 9:
    left, top, width, height = struct.unpack_from('<HHHH', data, position + 1)
    columns, rows = max(columns, left + width), max(rows, top + height)
  return columns, rows


def _check_tiles(image: Image.Image, max_pixels: int) -> None:
  """Check the tiles of a TIFF, which may be larger than the picture."""
  tags = getattr(image, 'tag_v2', {})
  columns, rows = tags.get(322), tags.get(323)  # TileWidth, TileLength
  if isinstance(columns, int) and isinstance(rows, int):
    check_size((columns, rows), max_pixels)


class _PillowLimit:
  """Pillow's own limit of pixels, a global variable. It is lifted while this module opens pictures, in any thread."""

  def __init__(self) -> None:
    self._limit = Image.MAX_IMAGE_PIXELS
    self._begin()
    if hasattr(os, 'register_at_fork'):  # a child has none of the threads that may hold the lock
      os.register_at_fork(after_in_child=self._begin)

  def _begin(self) -> None:
    self._lock, self._users = threading.Lock(), 0
    Image.MAX_IMAGE_PIXELS = self._limit

  @contextlib.contextmanager
  def lifted(self) -> Iterator[None]:
    """Lift the limit in the `with` block, and set it again when no thread is in such a block."""
    with self._lock:
      if not self._users:
        self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
      self._users += 1
    try:
      yield
    finally:
      with self._lock:
        self._users -= 1
        if not self._users:
          Image.MAX_IMAGE_PIXELS = self._limit


_pillow_limit = _PillowLimit()
