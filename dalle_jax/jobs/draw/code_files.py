"""Encoding a picture into a dVAE's codes, and decoding them, as files."""

from pathlib import Path

import numpy as np

from dalle_jax.data.image import read_picture
from dalle_jax.files import make_directory
from dalle_jax.jobs.draw.model import load
from dalle_jax.reporting import sheets


def encode(model: str, image: str, out: str) -> list[Path]:
  """Writes a picture's codes, int32 [h, w], as OUT/NAME.npy, and what they decode to as OUT/NAME_decoded.png.

  Args:
    model: a model directory with a dVAE.
    image: the picture, of any size; the middle square is taken.
    out: directory of the two files, which is made.

  Raises:
    ValueError: the model or the picture cannot be used.
  """
  if not image:
    raise ValueError('--encode needs a picture; give it with --image.')
  picture, loaded = read_picture(image), load(model)
  codes = loaded.encode(picture[None])
  directory, stem = make_directory(out), Path(image).stem
  kept, shown = directory / f'{stem}.npy', directory / f'{stem}_decoded.png'
  np.save(kept, codes[0])
  sheets.save_png(loaded.decode(codes)[0], shown, None)
  return [kept, shown]


def decode(model: str, file: str, out: str) -> list[Path]:
  """Writes what codes decode to as OUT/NAME_decoded.png, or OUT/NAME_NUMBER_decoded.png where there are several.

  Args:
    model: a model directory with a dVAE.
    file: a .npy file of whole numbers [h, w] or [N, h, w].
    out: directory of the pictures, which is made.

  Raises:
    ValueError: the model or the codes cannot be used.
  """
  try:
    codes = np.load(file, allow_pickle=False)
    if not isinstance(codes, np.ndarray):
      raise ValueError('it is an archive of several arrays')
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
