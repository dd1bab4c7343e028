"""Pictures: encoded bytes to RGB arrays, and PNG files with text in them."""

import io
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

_MODES_16_BIT = ('I', 'I;16', 'I;16L', 'I;16B', 'I;16N')
_RGB = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA')  # modes whose colours RGB holds
# What Pillow's readers raise for damaged or hostile files.
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def decode(data: bytes) -> np.ndarray:
  """Decodes a picture of any format and mode that Pillow reads.

  The EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled to 8 bits, and of an
  animation the first frame is taken.

  Args:
    data: the encoded file.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: the bytes are not a picture, are damaged, or hold a kind of pixel with no natural RGB.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      return np.array(_to_rgb(ImageOps.exif_transpose(image)))
  except PILLOW_ERRORS as error:
    raise ValueError(f'cannot decode the picture ({len(data)} bytes): {error}') from error


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode in _MODES_16_BIT:
    image = _to_8_bit(image)
  check_mode(image)
  if not image.has_transparency_data:
    return image.convert('RGB')
  # Palettes and RGB may name one transparent colour; `convert` turns it into alpha.
  image = image.convert('RGBA')
  white = Image.new('RGBA', image.size, 'white')
  return Image.alpha_composite(white, image).convert('RGB')


def check_mode(image: Image.Image) -> None:
  """Refuses pixels with no natural RGB. Raises ValueError."""
  if image.mode == 'F':
    raise ValueError('its pixels are floating point; save it with 8 or 16 bits')


def check_lossless(data: bytes) -> None:
  """Refuses a picture of which `decode` keeps less than there is.

  Raises:
    ValueError: it has transparency, more than 8 bits a channel, or several frames, or is no picture.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      frames, mode, transparent = getattr(image, 'n_frames', 1), image.mode, _is_transparent(image)
  except PILLOW_ERRORS as error:
    raise ValueError(f'cannot decode the picture ({len(data)} bytes): {error}') from error
  deep = _bits(data) > 8
  kinds = {
    'transparency': transparent, f'{frames} frames': frames > 1, 'more than 8 bits a channel': deep,
    f'pixels of the mode {mode}': mode not in _RGB and not deep,
  }  # fmt: skip
  found = [name for name, has_it in kinds.items() if has_it]
  if found:
    raise ValueError(
      f'it has {" and ".join(found)}, and only opaque 8-bit grey, palette and RGB pictures are coded without loss; '
      '--resize or --lossy takes it as training does, on white'
    )


def _bits(data: bytes) -> int:
  """Bits of a channel, which Pillow does not tell of PNG and TIFF files in colour."""
  if data[:8] == b'\x89PNG\r\n\x1a\n':
    return data[24]
  with Image.open(io.BytesIO(data)) as image:
    tags = getattr(image, 'tag_v2', {})
    return 16 if image.mode in _MODES_16_BIT else max(tags.get(258, (8,)))  # 258: BitsPerSample


def _is_transparent(image: Image.Image) -> bool:
  return image.has_transparency_data and image.convert('RGBA').getchannel('A').getextrema()[0] < 255


def _to_8_bit(image: Image.Image) -> Image.Image:
  """16-bit grey to 8 bits; Pillow's own conversion clips at 255 and gives white."""
  values = np.asarray(image).astype(np.int64)
  if values.min() < 0 or values.max() > 65535:
    raise ValueError('its pixels exceed 16 bits')
  grey = Image.fromarray(np.round(values / 257).astype(np.uint8))
  transparent = image.info.get('transparency')
  if isinstance(transparent, int):
    grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
  return grey


def encode_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
  """Encodes a picture without loss.

  Args:
    image: uint8 [H, W, 3].
    text: entries to write into the file, such as the prompt; Unicode is kept. Keys have 1 to 79 Latin-1 characters.

  Raises:
    ValueError: an image of another shape or type, or a key that PNG cannot hold.
  """
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(f'A picture must be uint8 [H, W, 3]; given {image.dtype} {list(image.shape)}.')
  info = PngImagePlugin.PngInfo()
  for key, value in (text or {}).items():
    if not (1 <= len(key) <= 79 and key.isprintable() and all(ord(c) < 256 for c in key)):
      raise ValueError(f'A PNG text key must have 1 to 79 printable Latin-1 characters; given {key!r}.')
    info.add_itxt(key, value)
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(buffer, 'PNG', pnginfo=info)
  return buffer.getvalue()


def read_picture(file: str, flag: str = '--image') -> np.ndarray:
  """A picture, uint8 [H, W, 3]. Raises ValueError if it cannot be read."""
  try:
    return decode(Path(file).read_bytes())
  except (OSError, ValueError) as error:
    raise ValueError(f'{flag} {file} cannot be read: {error}') from None
