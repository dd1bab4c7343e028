"""Sampling settings from flags; the model's own settings are the defaults."""

import dataclasses
from typing import Any

from dalle_jax.config import SamplingConfig
from dalle_jax.config.running import check_sampling
from dalle_jax.data.text.caption_text import check_prompt

RANKS = ('reranker', 'likelihood', 'caption_likelihood')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawSettings:
  """Settings for generating images or continuing texts; the fields are flags of `python -m dalle_jax.generate`.

  `None` means: use the model's own setting.

  Raises:
    ValueError: a value is out of range.
  """

  num_images: int = 8  # images or texts per prompt
  seed: int = 0
  batch_size: int | None = None
  temperature: float | None = None  # 0 takes the likeliest tokens
  top_k: int | None = None  # how many of the likeliest tokens to sample from; 0: all
  top_p: float | None = None  # share of the probability to sample from; 1: all
  guidance_scale: float | None = None  # classifier-free guidance; 1: none
  guidance_ramp: float | None = None  # share of the image's tokens over which the scale grows from 1
  negative_prompt: str = ''  # guidance moves away from this prompt; empty: away from images without a caption
  candidates: int | None = None  # images sampled per prompt, of which num_images are kept; None: num_images
  # The score that chooses among candidates, one of RANKS; empty: the reranker if there is one, else the likelihood.
  rank: str = ''
  truncate: bool = False  # cut prompts that are too long instead of refusing them
  # Pad every batch to the full batch size. An image is then bit for bit the same, however many are sampled.
  whole_batches: bool = False

  def __post_init__(self) -> None:
    _require(self.num_images >= 1, f'--num_images (--keep) is {self.num_images}; it must be at least 1.')
    most = max(self.num_images, self.candidates or 0)
    _require(most < 2**31, f'--num_images or --candidates is {most}; it must be below 2^31.')
    check_prompt(self.negative_prompt, '--negative_prompt')
    _require(0 <= self.seed < 2**31, f'--seed is {self.seed}; it must lie in [0, 2^31).')
    check_sampling(self._overrides, prefix='--')
    if self.rank and self.rank not in RANKS:
      raise ValueError(f'--rank is {self.rank!r}; allowed are {", ".join(RANKS)}.')
    _require(
      self.candidates is None or self.candidates >= self.num_images,
      f'--candidates is {self.candidates}, fewer than the {self.num_images} images to keep; raise it, or lower --keep '
      '(--num_images).',
    )

  @property
  def _overrides(self) -> dict[str, Any]:
    """The sampling settings that are set, by name."""
    names = (field.name for field in dataclasses.fields(SamplingConfig))
    return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

  @property
  def num_drawn(self) -> int:
    """Images sampled per prompt."""
    return self.candidates or self.num_images

  @property
  def is_ranked(self) -> bool:
    """Whether candidates are ranked."""
    return bool(self.rank) or self.num_drawn > self.num_images

  def sampling(self, own: SamplingConfig, number: int) -> SamplingConfig:
    """Merge these settings over the model's.

    Args:
      own: the model's own settings.
      number: samples to generate; the batch size is at most this unless `whole_batches` is set.
    """
    merged = dataclasses.replace(own, **self._overrides)
    return merged if self.whole_batches else dataclasses.replace(merged, batch_size=min(merged.batch_size, number))


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise ValueError(message)
