"""What `python -m dalle_jax.evaluate` is asked for."""

import dataclasses

from dalle_jax.config import Config, SamplingConfig
from dalle_jax.sampling.draw_settings import DrawSettings

FEATURES = ('reranker', 'inception')
DEFAULT_NUM_IMAGES = 1024
DEFAULT_BATCH_SIZE = 32
ALL = 'all'


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
  """The fields are the flags, and None stands for their defaults.

  Raises:
    ValueError: a value that cannot be.
  """

  model: str
  metrics: tuple[str, ...] = ('elbo',)  # of `metrics.METRICS`, or ALL alone
  split: str = 'validation'
  num_images: int | None = None  # 0: all of the split; None: DEFAULT_NUM_IMAGES, or all of a smaller split
  batch_size: int | None = None  # None: DEFAULT_BATCH_SIZE, and in drawing the model's own
  seed: int = 0
  source: str | None = None
  data: str | None = None
  data_dir: str | None = None
  out: str | None = None
  temperature: float | None = None  # of drawing, like the four below; None: the model's own
  top_k: int | None = None
  top_p: float | None = None
  guidance_scale: float | None = None
  guidance_ramp: float | None = None
  features: str | None = None  # one of FEATURES
  reranker: str | None = None
  inception: str | None = None
  cache: str | None = None
  images_per_prompt: int = 8  # of `diversity`
  diversity_prompts: int = 64
  blur_radii: tuple[float, ...] = tuple(range(9))  # of `blurred_fid`, in pixels

  def __post_init__(self) -> None:
    lowest = {'num_images': 0, 'batch_size': 1, 'images_per_prompt': 2, 'diversity_prompts': 1}
    for name, least in lowest.items():
      value = getattr(self, name)
      if value is not None and value < least:
        meaning = ' (all)' if name == 'num_images' else ''
        raise ValueError(f'--{name} is {value}; it must be {least}{meaning} or more.')
    self._draw_settings()  # for its checks
    if not self.blur_radii or min(self.blur_radii) < 0:
      raise ValueError(f'--blur_radii is {",".join(map(str, self.blur_radii))!r}; give radii of 0 or more, in pixels.')
    if self.features is not None and self.features not in FEATURES:
      raise ValueError(f'--features is {self.features!r}; allowed are {", ".join(FEATURES)}.')
    if self.features == 'reranker' and not self.reranker:
      raise ValueError('--features=reranker needs --reranker=DIR, the model directory of a reranker.')
    if self.features == 'inception' and not self.inception:
      raise ValueError('--features=inception needs --inception=FILE, pt_inception-2015-12-05-6726825d.pth.')
    if self.inception and self.features != 'inception':
      raise ValueError('--inception is only read with --features=inception; give both or neither.')

  def _draw_settings(self) -> DrawSettings:
    names = ('seed', 'batch_size', 'temperature', 'top_k', 'top_p', 'guidance_scale', 'guidance_ramp')
    return DrawSettings(num_images=1, **{name: getattr(self, name) for name in names})

  def sampling(self, own: SamplingConfig, number: int) -> SamplingConfig:
    """The model's settings of sampling with what is given instead, for `number` images."""
    return self._draw_settings().sampling(own, number)

  def source_of(self, config: Config) -> str:
    """The kind of data that a model of this configuration is measured on."""
    return self.source or config.data.source

  @property
  def rows(self) -> int:
    """Pictures at a time in measuring."""
    return self.batch_size or DEFAULT_BATCH_SIZE

  def count(self, available: int) -> int:
    """How many pictures of a split of `available` to measure on.

    Raises:
      ValueError: there are not so many.
    """
    if self.num_images is None:
      return min(DEFAULT_NUM_IMAGES, available)
    if self.num_images > available:
      raise ValueError(
        f'--num_images is {self.num_images}, and the split {self.split!r} has {available} pictures; 0 takes all.'
      )
    return self.num_images or available
