"""Settings for encoding."""

import dataclasses

from dalle_jax.compression.coders import CODERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionSettings:
  """How to encode a file. The fields are the flags of `python -m dalle_jax.compress encode`.

  Raises:
    ValueError: a value is out of range.
  """

  coder: str = 'range'
  batch_size: int = 64
  verify: bool = True
  lossy: bool = False
  resize: bool = False
  caption: str = ''
  max_image_pixels: int = 89_478_485  # of a picture file; the default of `data.pictures.image.MAX_PIXELS`

  def __post_init__(self) -> None:
    if self.coder not in CODERS:
      raise ValueError(f'--coder is {self.coder!r}; it must be one of {", ".join(CODERS)}.')
    if not 1 <= self.batch_size <= 1 << 16:
      raise ValueError(f'--batch_size is {self.batch_size}; it must lie in 1 to {1 << 16}.')
