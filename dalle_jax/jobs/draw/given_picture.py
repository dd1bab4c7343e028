"""The input image of a completion or a variation."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle_jax.data.pictures.image import MAX_PIXELS, decode_file, opacity, read_picture
from dalle_jax.jobs.draw.model import Model
from dalle_jax.sampling import completion
from dalle_jax.sampling.sampler import Known

WHITE = 128  # of 255: mask pixels of at least this value are light (grey) or opaque (alpha)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputPicture:
  """An input image, and which part of it is kept or how much the result may vary.

  The fields are flags of `python -m dalle_jax.generate`. Exactly one field besides `image` and `max_image_pixels` must
  be set.

  Raises:
    ValueError: none or several of these fields are set, or a value or file cannot be used.
  """

  image: str
  mask: str = ''
  keep_top: float | None = None
  keep_box: tuple[float, ...] | None = None
  redraw_box: tuple[float, ...] | None = None
  variation: float | None = None
  max_image_pixels: int = MAX_PIXELS  # of the image and of the mask

  def __post_init__(self) -> None:
    names = ('mask', 'keep_top', 'keep_box', 'redraw_box', 'variation')
    present = [name for name in names if getattr(self, name) not in ('', None)]
    if len(present) != 1:
      options = ', '.join(f'--{name}' for name in names)
      raise ValueError(f'With --image give exactly one of {options}; given {", ".join(present) or "none"}.')
    if self.mask:
      read_mask(self.mask, self.max_image_pixels)
    elif self.variation is not None:
      completion.variation_bonus(self.variation)
    else:
      self._cells(1)
    self._picture()

  def known(self, model: Model) -> Known:
    """Encodes the image and marks the codes that are kept.

    Raises:
      ValueError: image and mask differ in size, or no code is kept.
    """
    picture = self._picture()
    if self.variation is not None:
      return model.varied(picture, self.variation)
    if self.mask:
      return model.known(picture, read_mask(self.mask, self.max_image_pixels))
    return model.known(picture, self._cells(model.config.grid_size))

  def _picture(self) -> np.ndarray:
    return read_picture(self.image, max_pixels=self.max_image_pixels)

  def _cells(self, size: int) -> np.ndarray:
    """The codes to keep, bool [size, size], according to keep_top, keep_box or redraw_box."""
    if self.keep_top is not None:
      return completion.top(size, self.keep_top)
    if self.keep_box is not None:
      return completion.box(size, _four(self.keep_box, '--keep_box'))
    assert self.redraw_box is not None, '__post_init__ checks that one field is set'
    return ~completion.touched(size, _four(self.redraw_box, '--redraw_box'), '--redraw_box')

  def facts(self) -> dict[str, Any]:
    """The fields that are set, ready for JSON, with the hash of each file's contents instead of its path."""
    values = {name: value for name, value in dataclasses.asdict(self).items() if value not in ('', None)}
    del values['max_image_pixels']
    for name in ('image', 'mask'):
      if name in values:
        values[name] = hashlib.sha256(Path(values[name]).read_bytes()).hexdigest()[:16]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _four(sides: tuple[float, ...], flag: str) -> tuple[float, float, float, float]:
  """The sides of a rectangle. Raises ValueError unless there are four."""
  if len(sides) != 4:
    raise ValueError(f'{flag} needs four numbers, LEFT,TOP,RIGHT,BOTTOM; given {len(sides)}.')
  return sides


def read_mask(file: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """Reads a mask: the pixels to keep, bool [H, W].

  These are the dark pixels or, if the mask has transparent pixels, the opaque ones.

  Raises:
    ValueError: the file cannot be read.
  """
  alpha = decode_file(file, '--mask', opacity, max_pixels)
  if alpha is not None and not np.all(alpha >= WHITE):
    return alpha >= WHITE
  return np.asarray(Image.fromarray(read_picture(file, '--mask', max_pixels)).convert('L')) < WHITE
