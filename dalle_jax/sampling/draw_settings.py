"""What the flags of commands say: how to sample, with the model's own settings for the rest; how to compress."""

import dataclasses

from dalle_jax.config import SamplingConfig
from dalle_jax.config.running import check_sampling

RANKS = ('reranker', 'likelihood', 'caption_likelihood')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawSettings:
  """How to draw images, or to continue texts; the fields are flags of `python -m dalle_jax.generate`.

  Of those that may be None the model has its own.

  Raises:
    ValueError: a value that cannot be.
  """

  num_images: int = 8  # or texts, of each prompt
  seed: int = 0
  batch_size: int | None = None
  temperature: float | None = None  # 0 takes the likeliest tokens
  top_k: int | None = None  # tokens to choose among; 0: all
  top_p: float | None = None  # share of the probability to choose among; 1: all
  guidance_scale: float | None = None
  guidance_ramp: float | None = None
  negative_prompt: str = ''  # what guidance keeps away from, in place of no caption
  candidates: int | None = None  # images drawn of each prompt, of which num_images are kept; None: as many
  rank: str = ''  # which are kept
  truncate: bool = False  # cuts prompts that are too long
  # Fills batches up, so that few images are computed in the shapes of many, and are equal to theirs to the last bit.
  whole_batches: bool = False

  def __post_init__(self) -> None:
    _require(self.num_images >= 1, f'--num_images (--keep) is {self.num_images}; it must be at least 1.')
    _require(0 <= self.seed < 2**31, f'--seed is {self.seed}; it must lie in [0, 2^31).')
    check_sampling(self._given, prefix='--')
    if self.rank and self.rank not in RANKS:
      raise ValueError(f'--rank is {self.rank!r}; allowed are {", ".join(RANKS)}.')
    _require(
      self.candidates is None or self.candidates >= self.num_images,
      f'--candidates is {self.candidates}, fewer than the {self.num_images} images to keep (--keep, --num_images).',
    )

  @property
  def _given(self) -> dict[str, float]:
    """The settings of sampling that are not the model's own."""
    names = (field.name for field in dataclasses.fields(SamplingConfig))
    return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

  @property
  def num_drawn(self) -> int:
    """Images drawn of each prompt."""
    return self.candidates or self.num_images

  def sampling(self, own: SamplingConfig, number: int) -> SamplingConfig:
    """The model's settings with what is given instead, for `number` samples."""
    merged = dataclasses.replace(own, **self._given)
    return merged if self.whole_batches else dataclasses.replace(merged, batch_size=min(merged.batch_size, number))


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise ValueError(message)
