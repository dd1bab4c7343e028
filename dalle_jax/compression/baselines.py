"""What other programs make of the same data, each at its strongest setting."""

import bz2
import io
import lzma
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image


def of_file(file: BinaryIO) -> dict[str, int | None]:
  """Compressed sizes of what a file holds, by program; None where it is not installed (zstd: the package zstandard)."""
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
  return {name: sizes[name] + len(each.flush()) if each else None for name, each in compressors.items()}


def _zstd() -> Any:
  try:
    import zstandard
  except ImportError:
    return None
  return zstandard.ZstdCompressor(level=22).compressobj()


def of_pictures(images: Sequence[np.ndarray]) -> dict[str, int | None]:
  """The same for pictures uint8 [H, W, 3], each in a file of its own; and all in one where they have one width."""
  sizes: dict[str, int | None] = {f'{name}, one by one': sum(map(save, images)) for name, save in _SAVE.items()}
  if len(images) > 1 and len({image.shape[1] for image in images}) == 1:
    # One column, as far as the format's longest side allows; small pictures' headers weigh nothing then.
    whole = np.concatenate(images)
    for name, save in _SAVE.items():
      sizes[f'{name}, all in one'] = sum(save(whole[top : top + _TALLEST]) for top in range(0, len(whole), _TALLEST))
  return sizes


_BLOCK = 1 << 20
_TALLEST = 16_000  # WebP's longest side is 16,383


def _png(image: np.ndarray) -> int:
  return _saved(image, 'PNG', optimize=True)


def _webp(image: np.ndarray) -> int:
  return _saved(image, 'WEBP', lossless=True, quality=100, method=6)


_SAVE = {'PNG': _png, 'WebP lossless': _webp}


def _saved(image: np.ndarray, kind: str, **options: object) -> int:
  """The least of what it takes as RGB and, where that loses nothing, as grey or with a palette."""
  picture = Image.fromarray(image)
  forms = [picture]
  if (image == image[..., :1]).all():
    forms.append(picture.convert('L'))
  colours = picture.getcolors(256)
  if kind == 'PNG' and colours is not None:
    forms.append(_with_palette(image, [colour for _, colour in colours]))
  sizes = []
  for form in forms:
    buffer = io.BytesIO()
    form.save(buffer, kind, **options)
    sizes.append(buffer.tell())
  return min(sizes)


def _with_palette(image: np.ndarray, colours: list[tuple[int, ...]]) -> Image.Image:
  colours = sorted(colours)
  numbers = image.astype(np.int64) @ (65_536, 256, 1)
  index = np.searchsorted([red * 65_536 + green * 256 + blue for red, green, blue in colours], numbers)
  picture = Image.fromarray(index.astype(np.uint8))
  picture.putpalette([channel for colour in colours for channel in colour])
  return picture
