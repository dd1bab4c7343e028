"""Decode image files to RGB arrays, and encode RGB arrays as PNG with text entries."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from dalle_jax.data.pictures import colour_profiles
from dalle_jax.data.pictures.picture_files import (
  EXTENSIONS,
  MAX_PIXELS,
  PILLOW_ERRORS,
  Opened,
  load,
  most_bytes,
  opened,
)
from dalle_jax.files import check_regular, shown

__all__ = [
  'EXTENSIONS', 'MAX_PIXELS', 'PILLOW_ERRORS', 'Picture', 'Traits', 'check_lossless', 'check_mode', 'contents',
  'decode', 'decode_file', 'encode_png', 'opacity', 'png_text', 'read', 'read_picture', 'read_with_traits',
]  # fmt: skip

_Result = TypeVar('_Result')
_MODES_16_BIT = ('I', 'I;16', 'I;16L', 'I;16B', 'I;16N')
_RGB = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA')  # Pillow modes that convert to 8-bit RGB without changing a colour
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PRIMARIES = 258, 262, 319  # TIFF tags
_EXIF_IFD, _INTEROP_IFD, _COLOUR_SPACE, _ADOBE_RGB, _UNCALIBRATED = 0x8769, 0xA005, 0xA001, 2, 0xFFFF
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Picture(NamedTuple):
  """A decoded picture."""

  pixels: np.ndarray  # uint8 [H, W, 3]
  notes: tuple[str, ...] = ()  # what the file asks for and `pixels` do not show, such as a damaged colour profile


class Traits(NamedTuple):
  """What a picture file holds that its decoded pixels do not show."""

  format: str  # one of Pillow's names
  mode: str  # Pillow's mode of the stored pixels
  bits: int  # bits per channel
  frames: int  # 1, or 2 for any larger number
  is_turned: bool  # whether its EXIF data ask for another orientation
  is_transparent: bool  # whether a pixel is not opaque


class _Layers(NamedTuple):
  """The parts of a decoded picture, upright."""

  colours: Image.Image  # RGB
  alpha: Image.Image | None  # grey, 255 where the picture is opaque; None if all of it is
  notes: tuple[str, ...]
  traits: Traits | None  # if the caller asks for them


def decode(data: bytes, max_pixels: int = MAX_PIXELS, smallest: int | None = None) -> np.ndarray:
  """Decodes an image file of any format in the list of formats that are read.

  It applies the EXIF orientation, converts colour profiles to sRGB, composites transparency on white, scales 16-bit
  grey to 8 bits, and takes the first frame of an animation.

  Args:
    data: the contents of the image file.
    max_pixels: the largest number of pixels, rows times columns. It is compared before the pixels are decoded.
    smallest: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, if both sides keep so many pixels. None: whole.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: the bytes are not an image of such a format, are damaged, have more pixels, or hold floating-point
      pixels.
  """
  return np.array(_on_white(_layers(data, max_pixels, smallest=smallest)))


def read(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
  """Decodes an image file as `decode` does, and says what could not be honoured. Raises the same errors."""
  layers = _layers(data, max_pixels)
  return Picture(np.array(_on_white(layers)), layers.notes)


def read_with_traits(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, Traits, tuple[str, ...]]:
  """Decodes an image file as `read` does, and says what the file holds. Raises the same errors.

  Returns:
    An RGB image with the pixels of `read`, the traits, and the notes of `read`.
  """
  layers = _layers(data, max_pixels, wants_traits=True)
  assert layers.traits is not None
  return _on_white(layers), layers.traits, layers.notes


def _on_white(layers: _Layers) -> Image.Image:
  colours = layers.colours
  if layers.alpha is None or layers.alpha.getextrema()[0] == 255:
    return colours
  colours.putalpha(layers.alpha)
  return Image.alpha_composite(Image.new('RGBA', colours.size, 'white'), colours).convert('RGB')


def opacity(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
  """The alpha channel of an image file, upright: uint8 [H, W], 255 where it is opaque. None if it has none.

  Raises:
    ValueError: as `decode`.
  """
  alpha = _layers(data, max_pixels).alpha
  return None if alpha is None else np.array(alpha)


def png_text(data: bytes, max_pixels: int = MAX_PIXELS) -> dict[str, str]:
  """The text entries of a PNG file.

  Raises:
    ValueError: the bytes are not a PNG file, or as `decode`.
  """
  with opened(data, max_pixels) as picture:
    if picture.png is None:
      raise ValueError(f'it is a {picture.format} file; only PNG files hold text entries')
    load(picture)
    return picture.png.text()


def _layers(data: bytes, max_pixels: int, wants_traits: bool = False, smallest: int | None = None) -> _Layers:
  with opened(data, max_pixels) as picture:
    if smallest and isinstance(picture.image, JpegImagePlugin.JpegImageFile):
      picture.image.draft(picture.image.mode, (smallest, smallest))
    image = load(picture)
    mode = image.mode
    turn, notes = _orientation(image)
    alpha = _key_mask(picture, data, max_pixels)
    image = _with_8_bits(image)
    if alpha is None and image.has_transparency_data:
      # A palette or RGB image may declare one colour as transparent. `convert` turns that into an alpha channel.
      image = image.convert('RGBA')
      alpha, image = image.getchannel('A'), image.convert('RGB')
    colours, profile_notes = _in_srgb(image, _profile(picture))
    if turn is not None:
      colours, alpha = colours.transpose(turn), alpha and alpha.transpose(turn)
    notes = (*notes, *(profile_notes or _colour_notes(picture)))
    traits = None
    if wants_traits:
      is_transparent = alpha is not None and alpha.getextrema()[0] != 255
      traits = Traits(
        picture.format, mode, _bits(picture, data), _frames(picture), turn is not None, is_transparent
      )  # fmt: skip
    return _Layers(colours, alpha, notes, traits)


def _frames(picture: Opened) -> int:
  """1, or 2 for several frames or pages. Reads on in the file, so it comes after the pixels."""
  if picture.png:
    return min(picture.png.frames, 2)
  try:
    return 2 if getattr(picture.image, 'is_animated', False) else 1
  except PILLOW_ERRORS:  # the first frame is whole, and training uses it alone
    return 1


def _orientation(image: Image.Image) -> tuple[Image.Transpose | None, tuple[str, ...]]:
  """How to turn a picture upright, and notes. Reads the one tag: rewriting the others would fail for some files."""
  try:
    return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1)), ()
  except PILLOW_ERRORS:
    return None, ('EXIF data not read: damaged',)


def _key_mask(picture: Opened, data: bytes, max_pixels: int) -> Image.Image | None:
  """An alpha channel for the transparent colour of a grey or RGB PNG, compared at the file's own depth."""
  if picture.png is None or picture.png.key is None:
    return None
  pixels = np.asarray(picture.image)
  if pixels.ndim == 2:
    scale = {1: 1, 2: 85, 4: 17}.get(picture.png.depth, 1)  # Pillow scales pixels of 2 and 4 bits
    equal = pixels == picture.png.key[0] * scale
  else:
    key, equal = np.array(picture.png.key), np.ones(pixels.shape[:2], bool)
    if picture.png.depth == 16:
      with opened(data, max_pixels) as low:  # Pillow keeps the high bytes; here it takes the low bytes for them
        assert isinstance(low.image, ImageFile.ImageFile)
        low.image.tile = [tile._replace(args='RGB;16L') for tile in low.image.tile]
        low.image.load()
        equal, key = np.all(np.asarray(low.image) == key % 256, axis=-1), key // 256
    equal &= np.all(pixels == key, axis=-1)
  return Image.fromarray(np.where(equal, 0, 255).astype(np.uint8)) if equal.any() else None


def _with_8_bits(image: Image.Image) -> Image.Image:
  """An image with 8 bits per channel. The mode is L, LA, P, PA, RGB, RGBA, CMYK or one that converts to RGB."""
  if image.mode in _MODES_16_BIT:
    return _to_8_bit(image)
  check_mode(image)
  return image.convert('L') if image.mode == '1' and not image.has_transparency_data else image


def check_mode(image: Image.Image) -> None:
  """Raises ValueError for floating-point pixels, because their range is not defined."""
  if image.mode == 'F':
    raise ValueError('its pixels are floating point; save it with 8 or 16 bits')


def _to_8_bit(image: Image.Image) -> Image.Image:
  """Scales 16-bit grey to 8 bits. Pillow's `convert` would clip values at 255 instead."""
  values = np.asarray(image).astype(np.int64)
  tags = getattr(image, 'tag_v2', {})
  most = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
  if values.min() < 0 or values.max() > most:
    raise ValueError(
      f'its pixels are grey values from {values.min():,} to {values.max():,}; they must lie in [0, {most:,}]: save it '
      'with 8 or 16 bits'
    )
  if image.mode != 'I' and tags.get(_PHOTOMETRIC) == 0:  # 0 is white; Pillow inverts this only for 8 bits
    values = most - values
  return Image.fromarray(np.round(values / (most / 255)).astype(np.uint8))


def _profile(picture: Opened) -> bytes | None:
  """The ICC profile, or None."""
  if picture.png:
    return picture.png.profile
  profile = picture.image.info.get('icc_profile')
  return profile if isinstance(profile, bytes) else None


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, tuple[str, ...]]:
  """Converts an opaque image to RGB in sRGB, and says what could not be honoured."""
  if profile is None:
    return image.convert('RGB'), ()
  if image.mode == 'LAB':
    note = colour_profiles.note_on_lab(profile)
    return image.convert('RGB'), (note,) if note else ()
  image = image if image.mode in ('L', 'CMYK') else image.convert('RGB')
  converted, note = colour_profiles.to_srgb(image, profile)
  return converted.convert('RGB'), (note,) if note else ()


def _colour_notes(picture: Opened) -> tuple[str, ...]:
  """What else in a file without a usable profile states another colour space than sRGB."""
  if picture.png:
    return picture.png.colour_notes
  if _profile(picture) is not None:
    return ()
  if isinstance(picture.image, TiffImagePlugin.TiffImageFile):
    return ('primaries of TIFF not converted',) if _PRIMARIES in picture.image.tag_v2 else ()
  try:
    exif = picture.image.getexif()
    space = exif.get_ifd(_EXIF_IFD).get(_COLOUR_SPACE)
    is_adobe = space == _ADOBE_RGB or (space == _UNCALIBRATED and exif.get_ifd(_INTEROP_IFD).get(1) == 'R03')
    return ('Adobe RGB of EXIF not converted',) if is_adobe else ()
  except PILLOW_ERRORS:
    return ()


def check_lossless(data: bytes, max_pixels: int = MAX_PIXELS) -> None:
  """Checks that `decode` would lose nothing of an image.

  Raises:
    ValueError: the image has transparency, several frames, more than 8 bits per channel, a colour profile other than
      sRGB or a colour mode that RGB cannot represent, or the bytes are not an image.
  """
  with opened(data, max_pixels) as picture:
    image = load(picture)
    mode, deep = image.mode, _bits(picture, data) > 8
    frames = picture.png.frames if picture.png else getattr(image, 'n_frames', 1)
    profile = _profile(picture)
  alpha = opacity(data, max_pixels)
  losses = {
    'transparency': alpha is not None and alpha.min() < 255,
    f'{frames} frames': frames > 1,
    'more than 8 bits per channel': deep,
    f'pixels of the mode {mode}': mode not in _RGB and not deep,
    'a colour profile other than sRGB': (
      profile is not None and mode in _RGB and not colour_profiles.is_srgb(_opaque(image), profile)
    ),
  }
  reasons = [name for name, applies in losses.items() if applies]
  if reasons:
    raise ValueError(
      f'it has {" and ".join(reasons)}; only opaque 8-bit grey, palette and RGB images in sRGB with one frame can be '
      'coded without loss. Give --resize or --lossy to convert it to 8-bit RGB on white, as training does'
    )


def _opaque(image: Image.Image) -> Image.Image:
  return image if image.mode == 'L' else image.convert('RGBA').convert('RGB')


def _bits(picture: Opened, data: bytes) -> int:
  """Bits per channel. Read from the file, because Pillow does not report them for most colour files."""
  if picture.png:
    return picture.png.depth
  if picture.format == 'AVIF':
    # The box av1C: its name, two bytes, and the flags high_bitdepth and twelve_bit.
    position = data.find(b'av1C')
    return 10 if position >= 0 and data[position + 6 : position + 7] and data[position + 6] & 0x40 else 8
  tags = getattr(picture.image, 'tag_v2', {})
  return 16 if picture.image.mode in _MODES_16_BIT else max(tags.get(_BITS_PER_SAMPLE, (8,)))


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


def read_picture(file: str, flag: str = '--image', max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """Reads an image file as uint8 [H, W, 3].

  Args:
    file: path of the image.
    flag: the flag that gave the path, for the message.
    max_pixels: see `decode`.

  Raises:
    ValueError: the file cannot be read or decoded.
  """
  return decode_file(file, flag, decode, max_pixels)


def decode_file(
  file: str, flag: str, decoder: Callable[[bytes, int], _Result], max_pixels: int = MAX_PIXELS
) -> _Result:
  """Applies `decode` or another function of this module to the contents of a file that a flag names.

  Raises:
    ValueError: the file cannot be read or decoded; the message names the flag and the file.
  """
  try:
    return decoder(contents(Path(file), max_pixels), max_pixels)
  except OSError as error:
    raise ValueError(f'{flag} {shown(file)} cannot be read: {error.strerror or shown(error)}.') from None
  except ValueError as error:
    raise ValueError(f'{flag} {shown(file)} cannot be read: {error}') from None


def contents(path: Path, max_pixels: int) -> bytes:
  """The contents of a picture file.

  Raises:
    ValueError: it is not a regular file, or has more bytes than a picture of `max_pixels` can need.
    OSError: it cannot be read.
  """
  most = most_bytes(max_pixels)
  check_regular(path)
  if path.stat().st_size > most:
    raise ValueError(f'it has more than {most:,} bytes, which no picture within --max_image_pixels needs')
  return path.read_bytes()
