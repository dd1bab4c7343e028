"""Compressed sizes that standard programs and image formats reach on the same data, at their strongest settings."""

import bz2
import io
import lzma
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image


def of_file(file: BinaryIO) -> dict[str, int | None]:
  """Compress the rest of an open file with each program and return the sizes.

  Args:
    file: a file open for reading.

  Returns:
    Bytes by program. The size for zstd is None if the package `zstandard` is not installed.
  """
  compressors = {
    'gzip -9': zlib.compressobj(9, wbits=31),
    'bzip2 -9': bz2.BZ2Compressor(9),
    'xz -9e': lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
    'zstd --ultra -22': _zstd(),
  }
  sizes = dict.fromkeys(compressors, 0)
  while data := file.read(_BLOCK):
    for name, compressor in compressors.items():
      sizes[name] += len(compressor.compress(data)) if compressor else 0
  return {
    name: sizes[name] + len(compressor.flush()) if compressor else None for name, compressor in compressors.items()
  }


def _zstd() -> Any:
  try:
    import zstandard
  except ImportError:
    return None
  return zstandard.ZstdCompressor(level=22).compressobj()


def of_pictures(images: Sequence[np.ndarray]) -> dict[str, int | None]:
  """Encode pictures losslessly in each format and return the sizes.

  Args:
    images: pictures uint8 [H, W, 3].

  Returns:
    Bytes by format, with one file for each picture. If there are several pictures and all have the same width, also the
    bytes with all pictures stacked into one file.
  """
  sizes: dict[str, int | None] = {f'{name}, one by one': sum(map(save, images)) for name, save in _SAVE.items()}
  if len(images) > 1 and len({image.shape[1] for image in images}) == 1:
    # One file saves the headers, which matter for small pictures. A column taller than the format allows is split.
    column = np.concatenate(images)
    for name, save in _SAVE.items():
      sizes[f'{name}, all in one'] = sum(save(column[top : top + _TALLEST]) for top in range(0, len(column), _TALLEST))
  return sizes


_BLOCK = 1 << 20
_TALLEST = 16_000  # rows; WebP allows 16,383


def _png(image: np.ndarray) -> int:
  return _encoded_size(image, 'PNG', optimize=True)


def _webp(image: np.ndarray) -> int:
  return _encoded_size(image, 'WEBP', lossless=True, quality=100, method=6)


_SAVE = {'PNG': _png, 'WebP lossless': _webp}


def _encoded_size(image: np.ndarray, image_format: str, **options: object) -> int:
  """Bytes of the smallest lossless encoding: as RGB and, if no colour is lost, as grey or with a palette."""
  picture = Image.fromarray(image)
  variants = [picture]
  if (image == image[..., :1]).all():
    variants.append(picture.convert('L'))
  colours = picture.getcolors(256)
  if image_format == 'PNG' and colours is not None:
    variants.append(_with_palette(image, [colour for _, colour in colours if isinstance(colour, tuple)]))
  sizes = []
  for variant in variants:
    buffer = io.BytesIO()
    variant.save(buffer, image_format, **options)
    sizes.append(buffer.tell())
  return min(sizes)


def _with_palette(image: np.ndarray, colours: list[tuple[int, ...]]) -> Image.Image:
  colours = sorted(colours)
  packed = image.astype(np.int64) @ (65_536, 256, 1)
  index = np.searchsorted([red * 65_536 + green * 256 + blue for red, green, blue in colours], packed)
  picture = Image.fromarray(index.astype(np.uint8))
  picture.putpalette([channel for colour in colours for channel in colour])
  return picture
