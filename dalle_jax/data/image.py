"""Decode image files to RGB arrays, and encode RGB arrays as PNG with text entries."""

import io
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

_MODES_16_BIT = ('I', 'I;16', 'I;16L', 'I;16B', 'I;16N')
_RGB = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA')  # Pillow modes that convert to 8-bit RGB without changing a colour
# The exceptions that Pillow's readers raise for damaged or malicious files.
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def decode(data: bytes) -> np.ndarray:
  """Decodes an image of any format and mode that Pillow reads.

  It applies the EXIF orientation, composites transparency on white, scales 16-bit grey to 8 bits, and takes the first
  frame of an animation.

  Args:
    data: the contents of the image file.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: the bytes are not an image, are damaged, or hold floating-point pixels.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      return np.array(_to_rgb(ImageOps.exif_transpose(image)))
  except PILLOW_ERRORS as error:
    raise ValueError(f'cannot decode the image ({len(data)} bytes): {error}') from error


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode in _MODES_16_BIT:
    image = _to_8_bit(image)
  check_mode(image)
  if not image.has_transparency_data:
    return image.convert('RGB')
  # A palette or RGB image may declare one colour as transparent. `convert` turns that into an alpha channel.
  image = image.convert('RGBA')
  white = Image.new('RGBA', image.size, 'white')
  return Image.alpha_composite(white, image).convert('RGB')


def check_mode(image: Image.Image) -> None:
  """Raises ValueError for floating-point pixels, because their range is not defined."""
  if image.mode == 'F':
    raise ValueError('its pixels are floating point; save it with 8 or 16 bits')


def check_lossless(data: bytes) -> None:
  """Checks that `decode` would lose nothing of an image.

  Raises:
    ValueError: the image has transparency, several frames, more than 8 bits per channel or a colour mode that RGB
      cannot represent, or the bytes are not an image.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      frames, mode, transparent = getattr(image, 'n_frames', 1), image.mode, _is_transparent(image)
  except PILLOW_ERRORS as error:
    raise ValueError(f'cannot decode the image ({len(data)} bytes): {error}') from error
  deep = _bits(data) > 8
  losses = {
    'transparency': transparent, f'{frames} frames': frames > 1, 'more than 8 bits per channel': deep,
    f'pixels of the mode {mode}': mode not in _RGB and not deep,
  }  # fmt: skip
  reasons = [name for name, applies in losses.items() if applies]
  if reasons:
    raise ValueError(
      f'it has {" and ".join(reasons)}; only opaque 8-bit grey, palette and RGB images with one frame can be coded '
      'without loss. Give --resize or --lossy to convert it to 8-bit RGB on white, as training does'
    )


def _bits(data: bytes) -> int:
  """Bits per channel. Read from the file, because Pillow does not report them for colour PNG and TIFF files."""
  if data[:8] == b'\x89PNG\r\n\x1a\n':
    return data[24]
  with Image.open(io.BytesIO(data)) as image:
    tags = getattr(image, 'tag_v2', {})
    return 16 if image.mode in _MODES_16_BIT else max(tags.get(258, (8,)))  # 258: BitsPerSample


def _is_transparent(image: Image.Image) -> bool:
  if not image.has_transparency_data:
    return False
  least = image.convert('RGBA').getchannel('A').getextrema()[0]
  assert not isinstance(least, tuple)  # Pillow returns tuples for images with several channels
  return least < 255


def _to_8_bit(image: Image.Image) -> Image.Image:
  """Scales 16-bit grey to 8 bits. Pillow's `convert` would clip values at 255 instead."""
  values = np.asarray(image).astype(np.int64)
  if values.min() < 0 or values.max() > 65535:
    raise ValueError('its pixels exceed 16 bits')
  grey = Image.fromarray(np.round(values / 257).astype(np.uint8))
  transparent_value = image.info.get('transparency')
  if isinstance(transparent_value, int):
    grey.putalpha(Image.fromarray(np.where(values == transparent_value, 0, 255).astype(np.uint8)))
  return grey


def encode_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
  """Encodes an image as PNG.

  Args:
    image: uint8 [H, W, 3].
    text: text entries to store in the file, such as the prompt. Values may be any Unicode; keys must have 1 to 79
      printable Latin-1 characters.

  Returns:
    The contents of the PNG file.

  Raises:
    ValueError: the image has another shape or dtype, or PNG cannot store a key.
  """
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(f'An image must be uint8 [H, W, 3]; given {image.dtype} {list(image.shape)}.')
  info = PngImagePlugin.PngInfo()
  for key, value in (text or {}).items():
    if not (1 <= len(key) <= 79 and key.isprintable() and all(ord(c) < 256 for c in key)):
      raise ValueError(f'A PNG text key must have 1 to 79 printable Latin-1 characters; given {key!r}.')
    info.add_itxt(key, value)
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(buffer, 'PNG', pnginfo=info)
  return buffer.getvalue()


def read_picture(file: str, flag: str = '--image') -> np.ndarray:
  """Reads an image file as uint8 [H, W, 3].

  Args:
    file: path of the image.
    flag: the flag that gave the path, for the message.

  Raises:
    ValueError: the file cannot be read or decoded.
  """
  try:
    return decode(Path(file).read_bytes())
  except (OSError, ValueError) as error:
    raise ValueError(f'{flag} {file} cannot be read: {error}') from None
