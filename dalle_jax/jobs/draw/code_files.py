"""Encode an image file to a file of dVAE codes, and decode such a file."""

import io
import math
import os
from pathlib import Path

import numpy as np

from dalle_jax.data.pictures.image import MAX_PIXELS, read_picture
from dalle_jax.files import check_new, check_regular, make_directory, shown, write_whole
from dalle_jax.jobs.draw.model import load
from dalle_jax.reporting import sheets


def encode(model: str, image: str, out: str, max_pixels: int = MAX_PIXELS, overwrite: bool = False) -> list[Path]:
  """Writes an image's codes, int32 [h, w], to OUT/NAME.npy and their reconstruction to OUT/NAME_decoded.png.

  Args:
    model: a model directory with a dVAE.
    image: the image file, of any size; only the central square is used.
    out: the directory of the two files, created if missing.
    max_pixels: the largest number of pixels of the image file.
    overwrite: whether files of the same names are replaced.

  Returns:
    The two paths.

  Raises:
    ValueError: the model or the image cannot be used, or a file exists already.
  """
  if not image:
    raise ValueError('--encode needs an input image; give it with --image.')
  picture = read_picture(image, max_pixels=max_pixels)
  directory, stem = make_directory(out), Path(image).stem
  code_file, image_file = directory / f'{stem}.npy', directory / f'{stem}_decoded.png'
  check_new((code_file, image_file), overwrite)
  loaded = load(model)
  codes = loaded.encode(picture[None])
  buffer = io.BytesIO()
  np.save(buffer, codes[0])
  write_whole(code_file, buffer.getvalue())
  sheets.save_png(loaded.decode(codes)[0], image_file, None)
  return [code_file, image_file]


def decode(model: str, file: str, out: str, overwrite: bool = False) -> list[Path]:
  """Decodes a file of codes to OUT/NAME_decoded.png; codes [N, h, w] to OUT/NAME_000_decoded.png and so on.

  Args:
    model: a model directory with a dVAE.
    file: a .npy file of integers [h, w] or [N, h, w].
    out: the directory of the images, created if missing.
    overwrite: whether files of the same names are replaced.

  Returns:
    The paths of the images.

  Raises:
    ValueError: the model or the codes cannot be used, or a file exists already.
  """
  try:
    if os.path.exists(file) and not os.path.getsize(file):
      raise ValueError('it is empty')
    codes = _read_codes(Path(file))
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f'--decode={shown(file)} cannot be read as a .npy file of numbers: {shown(error, 300)}.') from None
  directory, stem = make_directory(out), Path(file).stem
  names = [stem] if codes.ndim == 2 else [f'{stem}_{number:03d}' for number in range(len(codes))]
  paths = [directory / f'{name}_decoded.png' for name in names]
  check_new(paths, overwrite)
  try:
    images = load(model).decode(codes if codes.ndim == 3 else codes[None])
  except ValueError as error:
    raise ValueError(f'--decode={shown(file)}: {error}') from None
  for path, image in zip(paths, images, strict=True):
    sheets.save_png(image, path, None)
  return paths


def _read_codes(path: Path) -> np.ndarray:
  """Reads an array [h, w] or [N, h, w], after a check that the file is as large as its header says.

  Raises:
    ValueError: the file holds no such array.
    OSError: the file cannot be read.
  """
  check_regular(path)
  with path.open('rb') as file:
    if file.read(4) == b'PK\x03\x04':
      raise ValueError('it is an archive of several arrays; give one array, saved by np.save')
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
      raise ValueError(f'its version is {version}; arrays of numbers have (1, 0) or (2, 0)')
    shape, _, dtype = read_header[version](file)
    if dtype.hasobject or dtype.fields or dtype.subdtype or not all(type(side) is int and side >= 0 for side in shape):
      raise ValueError(f'its header gives the shape {shape} and the type {dtype}; it must hold numbers')
    if len(shape) not in (2, 3):
      raise ValueError(f'its array has the shape {list(shape)}; it must be [h, w] or [N, h, w]')
    num_bytes, rest = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
    if num_bytes != rest:
      raise ValueError(f'its header claims an array of {num_bytes:,} bytes, but {rest:,} bytes follow')
    file.seek(0)
    return np.load(file, allow_pickle=False)
