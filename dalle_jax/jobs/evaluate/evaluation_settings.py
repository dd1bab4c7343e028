"""The settings of an evaluation."""

import dataclasses

from dalle_jax.config import Config, SamplingConfig
from dalle_jax.sampling.draw_settings import DrawSettings

FEATURES = ('reranker', 'inception')
DEFAULT_NUM_IMAGES = 1024
DEFAULT_BATCH_SIZE = 32
MOST_BLUR = 1000  # pixels
ALL = 'all'


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
  """What to measure, and how. The fields are the flags of `python -m dalle_jax.evaluate`.

  Raises:
    ValueError: a value is out of range, or a flag that another one needs is missing.
  """

  model: str  # model directory
  metrics: tuple[str, ...] = ('elbo',)  # names in `metrics.METRICS`, or only ALL
  split: str = 'validation'
  num_images: int | None = None  # 0: the whole split; None: at most DEFAULT_NUM_IMAGES of it
  batch_size: int | None = None  # None: DEFAULT_BATCH_SIZE; for generating, the model's own setting
  seed: int = 0
  source: str | None = None  # kind of data, like config.data.source; None: the model's own data
  data: str | None = None  # directory of the data, like config.data.path; None: the model's own data
  data_dir: str | None = None  # directory for generated data sets; None: config.data.data_dir, or beside the model
  max_image_pixels: int | None = None  # of a picture file; None: config.data.max_image_pixels
  out: str | None = None  # JSON file; None: evaluation_SPLIT.json beside the model
  temperature: float | None = None  # for this and the next four, None: the model's own setting
  top_k: int | None = None
  top_p: float | None = None
  guidance_scale: float | None = None
  guidance_ramp: float | None = None
  features: str | None = None  # one of FEATURES
  reranker: str | None = None  # model directory
  inception: str | None = None  # file of weights
  cache: str | None = None  # directory for features and hashes of real images; None: directories beside the model
  images_per_prompt: int = 8  # for `diversity`: number of images per prompt
  diversity_prompts: int = 64  # for `diversity`: maximum number of prompts
  blur_radii: tuple[float, ...] = tuple(range(9))  # for `blurred_fid`: standard deviations in pixels

  def __post_init__(self) -> None:
    minimums = {'num_images': 0, 'batch_size': 1, 'images_per_prompt': 2, 'diversity_prompts': 1, 'max_image_pixels': 1}
    for name, minimum in minimums.items():
      value = getattr(self, name)
      if value is not None and value < minimum:
        meaning = ' (all)' if name == 'num_images' else ''
        raise ValueError(f'--{name} is {value}; it must be {minimum}{meaning} or more.')
    self._draw_settings()  # checks the sampling settings
    if not self.blur_radii or not all(0 <= radius <= MOST_BLUR for radius in self.blur_radii):
      raise ValueError(
        f'--blur_radii is {",".join(map(str, self.blur_radii))!r}; give numbers of pixels from 0 to {MOST_BLUR}.'
      )
    if self.features is not None and self.features not in FEATURES:
      raise ValueError(f'--features is {self.features!r}; allowed are {", ".join(FEATURES)}.')
    if self.features == 'reranker' and not self.reranker:
      raise ValueError('--features=reranker needs --reranker=DIR, the model directory of a reranker.')
    if self.features == 'inception' and not self.inception:
      raise ValueError('--features=inception needs --inception=FILE, the file pt_inception-2015-12-05-6726825d.pth.')
    if self.inception and self.features != 'inception':
      raise ValueError('--inception is only read with --features=inception; give both flags or neither.')

  def _draw_settings(self) -> DrawSettings:
    names = ('seed', 'batch_size', 'temperature', 'top_k', 'top_p', 'guidance_scale', 'guidance_ramp')
    return DrawSettings(num_images=1, **{name: getattr(self, name) for name in names})

  def sampling(self, own: SamplingConfig, number: int) -> SamplingConfig:
    """Merges these settings over the model's own sampling settings; see `DrawSettings.sampling`."""
    return self._draw_settings().sampling(own, number)

  def source_of(self, config: Config) -> str:
    """The kind of data to measure a model with this configuration on, a value of config.data.source."""
    return self.source or ('auto' if self.data else config.data.source)

  @property
  def rows(self) -> int:
    """Images per batch, except while generating."""
    return self.batch_size or DEFAULT_BATCH_SIZE

  def count(self, available: int) -> int:
    """The number of images to measure on.

    Args:
      available: the number of images in the split.

    Raises:
      ValueError: `num_images` is larger than the split.
    """
    if self.num_images is None:
      return min(DEFAULT_NUM_IMAGES, available)
    if self.num_images > available:
      raise ValueError(
        f'--num_images is {self.num_images}, but the split {self.split!r} has only {available} images; 0 takes all.'
      )
    return self.num_images or available
