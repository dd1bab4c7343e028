"""A picture given on the command line, to complete or to vary."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle_jax.data.image import read_picture
from dalle_jax.jobs.draw.model import Model
from dalle_jax.sampling import completion
from dalle_jax.sampling.sampler import Known

WHITE = 128  # grey values from which a mask says "draw here"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputPicture:
  """What stays of a picture; the fields are flags of `generate`, of which one beside `image` is set.

  Raises:
    ValueError: none is, or several, or a value or file cannot be used.
  """

  image: str
  mask: str = ''
  keep_top: float | None = None
  keep_box: tuple[float, ...] | None = None
  redraw_box: tuple[float, ...] | None = None
  variation: float | None = None

  def __post_init__(self) -> None:
    names = ('mask', 'keep_top', 'keep_box', 'redraw_box', 'variation')
    found = [name for name in names if getattr(self, name) not in ('', None)]
    if len(found) != 1:
      options = ', '.join(f'--{name}' for name in names)
      raise ValueError(f'With --image give one of {options}, which say what stays; given {", ".join(found) or "none"}.')
    if self.mask:
      read_mask(self.mask)
    elif self.variation is not None:
      completion.variation_bonus(self.variation)
    else:
      self._cells(1)
    read_picture(self.image)

  def known(self, model: Model) -> Known:
    """The picture's codes, and which of them stay.

    Raises:
      ValueError: the mask has another size than the picture, or leaves nothing to draw.
    """
    picture = read_picture(self.image)
    if self.variation is not None:
      return model.varied(picture, self.variation)
    return model.known(picture, read_mask(self.mask) if self.mask else self._cells(model.config.grid_size))

  def _cells(self, size: int) -> np.ndarray:
    if self.keep_top is not None:
      return completion.top(size, self.keep_top)
    if self.keep_box is not None:
      return completion.box(size, _four(self.keep_box, '--keep_box'))
    return ~completion.touched(size, _four(self.redraw_box, '--redraw_box'), '--redraw_box')

  def facts(self) -> dict[str, Any]:
    """What names the picture and what stays of it: the files by what they hold."""
    values = {name: value for name, value in dataclasses.asdict(self).items() if value not in ('', None)}
    for name in ('image', 'mask'):
      if name in values:
        values[name] = hashlib.sha256(Path(values[name]).read_bytes()).hexdigest()[:16]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _four(sides: tuple[float, ...], flag: str) -> tuple[float, float, float, float]:
  if len(sides) != 4:
    raise ValueError(f'{flag} needs four numbers, LEFT,TOP,RIGHT,BOTTOM; given {len(sides)}.')
  return sides


def read_mask(file: str) -> np.ndarray:
  """What stays, bool [H, W]: what is dark or, in a picture of which some is transparent, what is opaque.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    with Image.open(file) as image:
      if 'A' in image.getbands() or 'transparency' in image.info:
        opaque = np.asarray(image.convert('RGBA'))[..., 3] >= WHITE
        if not opaque.all():
          return opaque
    return np.asarray(Image.fromarray(read_picture(file, '--mask')).convert('L')) < WHITE
  except (OSError, Image.DecompressionBombError) as error:
    raise ValueError(f'--mask {file} cannot be read: {error}') from None
