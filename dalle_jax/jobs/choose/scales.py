"""The sizes of models to choose from, the smallest first, and the choice of one by the time of its steps."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

# A step's time grows by less than its work, above all on accelerators, whose small programs wait for memory. A size is
# only tried if this share of the proportional time fits.
PROPORTION_ON_CPU, PROPORTION_ON_ACCELERATOR = 0.6, 0.05


class PictureScale(NamedTuple):
  """Sizes of images and of the dVAE.

  Attributes:
    image_size: pixels along a side.
    grid: codes along a side.
    patch_size: `config.dvae.patch_size`.
    hidden_size: `config.dvae.hidden_size`.
    pictures: training pictures from which on this is worth trying.
    steps: fewest steps that are worth taking.
  """

  image_size: int
  grid: int
  patch_size: int
  hidden_size: int
  pictures: int
  steps: int

  @property
  def num_groups(self) -> int:
    """`config.dvae.num_groups`."""
    return int(math.log2(self.image_size // self.grid // self.patch_size)) + 1

  @property
  def work(self) -> float:
    """The work of a step, up to a factor: positions of the first layers times their channels squared."""
    return (self.image_size / self.patch_size * self.hidden_size) ** 2

  def __str__(self) -> str:
    return f'{self.image_size} pixels with {self.grid} x {self.grid} codes'


class PriorScale(NamedTuple):
  """Sizes of a transformer; `pictures` and `steps` as for `PictureScale`."""

  num_layers: int
  num_heads: int
  embed_dim: int
  pictures: int
  steps: int
  learning_rate: float

  @property
  def work(self) -> float:
    """The work of a step, up to a factor."""
    return self.num_layers * self.embed_dim**2

  def __str__(self) -> str:
    return f'{self.num_layers} layers of width {self.embed_dim}'


PICTURE_SCALES = (
  PictureScale(32, 8, 1, 32, 0, 2_000),
  PictureScale(64, 8, 2, 32, 0, 3_000),
  PictureScale(64, 16, 2, 64, 1_000, 4_000),
  PictureScale(128, 16, 2, 64, 2_000, 6_000),
  PictureScale(256, 32, 2, 128, 20_000, 15_000),
)
PRIOR_SCALES = (
  PriorScale(4, 4, 128, 0, 1_000, 3e-3),
  PriorScale(4, 6, 192, 1_500, 1_500, 3e-3),
  PriorScale(6, 8, 256, 10_000, 3_000, 3e-3),
  PriorScale(8, 8, 512, 50_000, 8_000, 1e-3),
  PriorScale(12, 12, 768, 500_000, 20_000, 5e-4),
  PriorScale(24, 16, 1024, 5_000_000, 60_000, 3e-4),
)


def picture_scales(side: int, pictures: int, image_size: int | None = None) -> list[PictureScale]:
  """The scales for pictures of a size; there is at least one.

  Args:
    side: pixels along the shorter side of the pictures. Enlarging them by more than a quarter gains nothing.
    pictures: the number of training pictures.
    image_size: the size of images if it is given. The grid of codes then follows from it.
  """
  smallest, *larger = [scale for scale in PICTURE_SCALES if scale.pictures <= pictures]
  if image_size is None:
    return [smallest, *(scale for scale in larger if scale.image_size <= 1.25 * side)]
  below = [scale for scale in (smallest, *larger) if scale.image_size <= image_size] or [smallest]
  largest = max(scale.image_size for scale in below)
  return [_resized(scale, image_size) for scale in below if scale.image_size == largest]


def _resized(scale: PictureScale, image_size: int) -> PictureScale:
  """A scale for images of another size. Pixels per code stay the same, or are the next power of two that divides it."""
  factor = math.gcd(scale.image_size // scale.grid, image_size)
  return scale._replace(
    image_size=image_size, grid=image_size // factor, patch_size=min(scale.patch_size, factor),
  )  # fmt: skip


def prior_scales(pictures: int) -> list[PriorScale]:
  """The transformers for a number of training pictures."""
  return [scale for scale in PRIOR_SCALES if scale.pictures <= pictures]


Scale = TypeVar('Scale', PictureScale, PriorScale)


class Pick(NamedTuple, Generic[Scale]):
  """A scale, the seconds of its step, and why it was taken."""

  scale: Scale
  seconds: float
  reason: str


def pick(
  scales: Sequence[Scale], budget: float, seconds_of: Callable[[Scale], float | None], is_cpu: bool
) -> Pick[Scale]:
  """The largest scale whose fewest steps fit into a time, or the smallest scale.

  Args:
    scales: the scales, the smallest first.
    budget: seconds.
    seconds_of: measures the step of a scale; None if it does not fit into memory.
    is_cpu: whether the steps run on CPUs.

  Raises:
    ValueError: not even the smallest scale fits into memory.
  """
  smallest = scales[0]
  first = seconds_of(smallest)
  if first is None:
    raise ValueError(
      f'Not even the smallest model ({smallest}) fits into memory. Set smaller values of dvae_training.batch_size and '
      'prior_training.batch_size with --config, or train on another device.'
    )
  proportion = PROPORTION_ON_CPU if is_cpu else PROPORTION_ON_ACCELERATOR
  refused: list[str] = []
  for scale in reversed(scales[1:]):
    least = proportion * first * scale.work / smallest.work
    if least * scale.steps > budget:
      refused.append(f'{scale} would need more than {minutes(least * scale.steps)}')
      continue
    seconds = seconds_of(scale)
    if seconds is None:
      refused.append(f'{scale} would not fit into memory')
    elif seconds * scale.steps > budget:
      refused.append(f'{scale} would need {minutes(seconds * scale.steps)}')
    else:
      return Pick(scale, seconds, _reason(scale, seconds, budget, refused))
  return Pick(smallest, first, _reason(smallest, first, budget, refused))


def _reason(scale: PictureScale | PriorScale, seconds: float, budget: float, refused: Iterable[str]) -> str:
  verb = 'fit' if scale.steps * seconds <= budget else 'do not fit'
  text = f'at least {scale.steps:,} steps of {seconds:.2g} s {verb} into {minutes(budget)}'
  return '; '.join([text, *refused])


def minutes(seconds: float) -> str:
  """A time in words, with two digits."""
  if seconds < 60:
    return f'{seconds:.2g} s'
  return f'{seconds / 60:.2g} min' if seconds < 6_000 else f'{seconds / 3600:.2g} h'
