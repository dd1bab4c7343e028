"""Folders of small captioned pictures."""

import numpy as np
from PIL import Image


def save_numbered(directory, count):
  """Write pictures of random pixels to 00.png, 01.png, ..., with the captions 'number 0', 'number 1', ... beside them.

  Args:
    directory: the folder to make.
    count: the number of pictures.
  """
  directory.mkdir()
  rng = np.random.default_rng(0)
  for i in range(count):
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(directory / f'{i:02d}.png')
    (directory / f'{i:02d}.txt').write_text(f'number {i}')
  return directory
