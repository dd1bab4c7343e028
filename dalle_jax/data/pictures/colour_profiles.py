"""Conversion of pictures from the colour space of their ICC profile to sRGB."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

# The colour spaces of profiles, by the modes of the pictures that they describe.
_SPACES = {'L': b'GRAY', 'RGB': b'RGB ', 'CMYK': b'CMYK'}
# Other colour spaces, and kinds of profiles that do not say what the numbers of a picture mean, by their signatures.
_OTHER_SPACES = {
  b'XYZ ': 'XYZ', b'Lab ': 'LAB', b'Luv ': 'LUV', b'YCbr': 'YCbCr', b'Yxy ': 'Yxy', b'HSV ': 'HSV', b'HLS ': 'HLS',
  b'CMY ': 'CMY', **{b'%XCLR' % count: f'{count} inks' for count in range(2, 16)},
}  # fmt: skip
_OTHER_KINDS = {
  b'link': 'it is a device link, which leads from one device to another',
  b'nmcl': 'it is a list of named colours',
}  # fmt: skip
_DAMAGED = 'colour profile not converted: it is damaged'
# A profile that changes no colour by more than this counts as sRGB. Its pictures stay the same, bit for bit.
_TOLERANCE = 2  # of 255
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
  """Convert a picture to sRGB.

  Args:
    image: grey ('L'), RGB or CMYK, with 8 bits per channel.
    profile: its ICC profile.

  Returns:
    The RGB picture and ''. If the profile means sRGB, is damaged, does not fit the picture or is of a kind that belongs
    to no picture: the same picture, and in the last three cases a note.
  """
  kind, space = bytes(profile[12:16]), bytes(profile[16:20])
  if profile[36:40] != b'acsp':
    return image, _DAMAGED
  try:
    if kind in _OTHER_KINDS or space in _OTHER_SPACES:
      _opened(profile)
      return image, f'colour profile not converted: {_OTHER_KINDS.get(kind) or _misfit(_OTHER_SPACES[space], image)}'
    if space not in _SPACES.values():
      return image, _DAMAGED
    fitting = _with_channels(image, space)
    if fitting is None:
      return image, f'colour profile not converted: {_misfit(space.decode().strip(), image)}'
    transform = _transform(bytes(profile), fitting.mode)
  except ImportError:
    return image, 'colour profile not converted: Pillow was built without LittleCMS'
  except (ImageCms.PyCMSError, OSError, ValueError):
    return image, _DAMAGED
  return (transform.apply(fitting), '') if transform else (image, '')


def _misfit(space: str, image: Image.Image) -> str:
  return f'it is for {space}, the pixels are {image.mode}'


def _opened(profile: bytes) -> ImageCms.ImageCmsProfile:
  return ImageCms.getOpenProfile(io.BytesIO(profile))


def note_on_lab(profile: bytes) -> str:
  """A note if pixels in LAB have a profile of another colour space; they need none."""
  space = bytes(profile[16:20])
  if profile[36:40] != b'acsp' or space not in (*_SPACES.values(), *_OTHER_SPACES):
    return _DAMAGED
  name = _OTHER_SPACES.get(space) or space.decode().strip()
  return '' if name == 'LAB' else f'colour profile not converted: it is for {name}, the pixels are LAB'


def is_srgb(image: Image.Image, profile: bytes) -> bool:
  """Whether a profile leaves the picture's pixels as they are. Damaged profiles do not."""
  converted, note = to_srgb(image, profile)
  return converted is image and not note


def _with_channels(image: Image.Image, space: bytes) -> Image.Image | None:
  """The picture with the channels of a profile's colour space, or None if that would lose colours."""
  if _SPACES.get(image.mode) == space:
    return image
  if image.mode == 'L' and space == b'RGB ':
    return image.convert('RGB')
  if image.mode == 'RGB' and space == b'GRAY':
    red, green, blue = image.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
      return red
  return None


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
  """The transform from a profile to sRGB, or None if it changes nothing that can be seen.

  We compare results instead of names: profiles that are named sRGB may have another tone curve.
  """
  transform = ImageCms.buildTransform(
    _opened(profile), ImageCms.createProfile('sRGB'), mode, 'RGB',
    ImageCms.Intent.RELATIVE_COLORIMETRIC, _FLAGS,
  )  # fmt: skip
  if mode == 'CMYK':
    return transform
  probe = _probe(mode)
  changed = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert('RGB'))
  return transform if np.abs(changed).max() > _TOLERANCE else None


def _probe(mode: str) -> Image.Image:
  """Colours to try a transform on: all greys and, in RGB, a grid with 9 levels per channel."""
  greys = np.arange(256, dtype=np.uint8)
  if mode == 'L':
    return Image.fromarray(greys[None])
  levels = np.linspace(0, 255, 9).astype(np.uint8)
  grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
  return Image.fromarray(np.concatenate([np.repeat(greys[None, :, None], 3, axis=-1), grid], axis=1))
