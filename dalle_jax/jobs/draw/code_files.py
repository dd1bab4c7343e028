"""Encode an image file to a file of dVAE codes, and decode such a file."""

from pathlib import Path

import numpy as np

from dalle_jax.data.image import read_picture
from dalle_jax.files import make_directory
from dalle_jax.jobs.draw.model import load
from dalle_jax.reporting import sheets


def encode(model: str, image: str, out: str) -> list[Path]:
  """Writes an image's codes, int32 [h, w], to OUT/NAME.npy and their reconstruction to OUT/NAME_decoded.png.

  Args:
    model: a model directory with a dVAE.
    image: the image file, of any size; only the central square is used.
    out: the directory of the two files, created if missing.

  Returns:
    The two paths.

  Raises:
    ValueError: the model or the image cannot be used.
  """
  if not image:
    raise ValueError('--encode needs an input image; give it with --image.')
  picture, loaded = read_picture(image), load(model)
  codes = loaded.encode(picture[None])
  directory, stem = make_directory(out), Path(image).stem
  code_file, image_file = directory / f'{stem}.npy', directory / f'{stem}_decoded.png'
  np.save(code_file, codes[0])
  sheets.save_png(loaded.decode(codes)[0], image_file, None)
  return [code_file, image_file]


def decode(model: str, file: str, out: str) -> list[Path]:
  """Decodes a file of codes to OUT/NAME_decoded.png; codes [N, h, w] to OUT/NAME_000_decoded.png and so on.

  Args:
    model: a model directory with a dVAE.
    file: a .npy file of integers [h, w] or [N, h, w].
    out: the directory of the images, created if missing.

  Returns:
    The paths of the images.

  Raises:
    ValueError: the model or the codes cannot be used.
  """
  try:
    codes = np.load(file, allow_pickle=False)
    if not isinstance(codes, np.ndarray):
      raise ValueError('it is an archive of several arrays; give one array, saved by np.save')
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f'--decode={file} cannot be read as a .npy file of numbers: {error}') from None
  try:
    images = load(model).decode(codes if codes.ndim == 3 else codes[None])
  except ValueError as error:
    raise ValueError(f'--decode={file}: {error}') from None
  directory, stem = make_directory(out), Path(file).stem
  names = [stem] if codes.ndim == 2 else [f'{stem}_{number:03d}' for number in range(len(images))]
  for name, image in zip(names, images, strict=True):
    sheets.save_png(image, directory / f'{name}_decoded.png', None)
  return [directory / f'{name}_decoded.png' for name in names]
