"""What metrics measure and share: real pictures and captions, reconstructions, drawn images, and features of them.

Each is made when a metric first asks for it, and once.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax.bundle import Bundle
from dalle_jax.config import SamplingConfig
from dalle_jax.data.registry import Dataset
from dalle_jax.evaluation import blur, reconstruction, sequence_likelihood
from dalle_jax.jobs import examples
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.evaluate.features import Cache, Extractor
from dalle_jax.jobs.ranker import Ranker
from dalle_jax.sampling.sampler import SampledImages, encode_prompts, make_sampler
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.progress import Progress


class Samples(NamedTuple):
  """Drawn images: one for each caption, and several for some."""

  prompts: list[str]  # N captions
  codes: np.ndarray  # int32 [N, h, w]
  images: np.ndarray  # uint8 [N, H, W, 3]
  groups: np.ndarray  # int [P, K]: of the images of one prompt, their rows in the two below
  all_codes: np.ndarray  # those above, and the further images of prompts in `groups`
  all_images: np.ndarray


class Measured:
  """A model on the first `count` pictures of a split.

  Args:
    settings: of the command.
    loaded: the model.
    dataset: whose split.
    count: pictures.
    mesh: of the devices.
    extractor: The extractor of features, if metrics need one.
    ranker: The reranker, if metrics need one.
    cache: The cache of features of real pictures, if metrics need features.
    grouped: Whether metrics need several images of one prompt.
    prompts: What to sample images for; None for the captions of the pictures.
    sample_seed: The seed of the sampled images; None derives it from the settings.
    sampling: How to sample; None takes the model's settings with those of the command.
  """

  def __init__(
    self, settings: EvaluationSettings, loaded: Bundle, dataset: Dataset, count: int, mesh: Mesh, *,
    extractor: Extractor | None = None, ranker: Ranker | None = None, cache: Cache | None = None, grouped: bool = False,
    prompts: list[str] | None = None, sample_seed: int | None = None, sampling: SamplingConfig | None = None,
  ):  # fmt: skip
    self.settings, self.loaded, self.config = settings, loaded, loaded.config
    self.count, self.mesh, self.extractor, self.ranker = count, mesh, extractor, ranker
    self._dataset, self._cache, self._grouped = dataset, cache, grouped
    self._prompts, self._sample_seed, self._sampling = prompts, sample_seed, sampling
    self.source = dataset.open(settings.split)

  def has(self, name: str) -> bool:
    """Whether some metric has asked for what is made once, such as 'samples'."""
    return name in vars(self)

  def batches(self) -> Any:
    """The records in batches of one shape, as `examples.batches` gives them."""
    tokenizer = self.loaded.tokenizer
    return examples.batches(self.config, tokenizer, self.source, self.count, self.settings.rows, self.mesh)

  def progress(self, name: str, total: int, unit: str = 'image') -> Progress:
    return Progress(name, total, unit, enabled=jax.process_index() == 0)

  @functools.cached_property
  def _read(self) -> dict[str, np.ndarray]:
    with self.progress('reading', self.count) as progress:
      parts, done = [], 0
      for rows, batch in self.batches():
        parts.append({name: values[:rows] for name, values in batch.items()})
        done += rows
        progress.update(done)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  @property
  def pictures(self) -> np.ndarray:
    """Real pictures as the model sees them, uint8 [N, H, W, 3]."""
    return self._read['image']

  @property
  def text(self) -> np.ndarray:
    """Ids of their captions, int32 [N, text_length - 1]; [N, 0] for a model that reads none."""
    return self._read.get('text', np.zeros((self.count, 0), np.int32))

  @functools.cached_property
  def captions(self) -> list[str]:
    """Of all of them; '' where there is none."""
    return [self.source[i]['caption'].strip() for i in range(self.count)]

  @property
  def captioned(self) -> list[int]:
    """The numbers of the pictures that have a caption.

    Raises:
      ValueError: none has.
    """
    found = [i for i, caption in enumerate(self.captions) if caption]
    if not found:
      raise ValueError(f'None of the {self.count} pictures of the split {self.settings.split!r} has a caption to draw.')
    return found

  @functools.cached_property
  def reconstructed(self) -> tuple[np.ndarray, np.ndarray]:
    """The real pictures' codes int32 [N, h, w], and the pictures that the dVAE makes of them."""
    dvae, params = self.loaded.dvae, self.loaded.params['dvae']
    return reconstruction.reconstruct(dvae, params, self.pictures, self.mesh, self.settings.rows)

  @functools.cached_property
  def token_nats(self) -> tuple[np.ndarray, np.ndarray]:
    """Captions and codes as token streams, int32 [N, T], and -ln p of each token, float64 [N, T]."""
    model, part = self.loaded.stream_model
    codes, _ = self.reconstructed
    rows = np.asarray(model.stream(self.text, codes.reshape(len(codes), -1)))
    with self.progress('likelihood', len(rows)) as progress:
      params, batch_size = self.loaded.params[part], self.settings.rows
      return rows, sequence_likelihood.nats(model, params, rows, self.mesh, batch_size, progress.update_of)

  @functools.cached_property
  def samples(self) -> Samples:
    """One image for each caption, and the further ones of the first different captions where they are needed.

    The noise of an image depends on its number, and those of single captions come first: they are the same whether or
    not there are others.
    """
    prompts = self._prompts
    if prompts is None:
      prompts = [self.captions[i] for i in self.captioned] if self.config.reads_captions else [''] * self.count
    groups = np.zeros((0, self.settings.images_per_prompt), int)
    if self._grouped:
      first = sorted({prompt: row for row, prompt in reversed(list(enumerate(prompts)))}.values())
      first = first[: self.settings.diversity_prompts]
      others = len(prompts) + np.arange(len(first) * (self.settings.images_per_prompt - 1)).reshape(len(first), -1)
      groups = np.concatenate([np.array(first)[:, None], others], axis=1)
    further = [prompts[group[0]] for group in groups for _ in group[1:]]
    seed = stream_seed(self.settings.seed, 'samples') if self._sample_seed is None else self._sample_seed
    everything = [*prompts, *further]
    sampling = self._sampling or self.settings.sampling(self.config.sampling, len(everything))
    drawn = draw_samples(self.loaded, self.mesh, everything, seed, sampling)
    codes, images = drawn.codes, drawn.images
    count = len(prompts)
    return Samples(prompts, codes[:count], images[:count], groups, codes, images)

  @functools.cached_property
  def _drawn_features(self) -> np.ndarray:
    return self.extractor(self.samples.images, 'drawn pictures')

  def drawn_features(self, radius: float = 0) -> np.ndarray:
    """Of the images of single captions, blurred by `radius`: float32 [N, F]."""
    if not radius:
      return self._drawn_features
    return self.extractor(blur.gaussian(self.samples.images, radius), 'drawn pictures')

  @property
  def paired(self) -> bool:
    """Whether image i was drawn for the caption of the i-th picture that has one."""
    return self.config.reads_captions

  def compared_features(self, radius: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of real pictures, and of as many images drawn, for their captions where the model reads any: float32 [N, F]."""
    real = self.real_features(radius)
    return real[self.captioned] if self.paired else real, self.drawn_features(radius)

  def real_features(self, radius: float = 0) -> np.ndarray:
    """Of all real pictures: float32 [N, F]."""
    facts = {
      'extractor': self.extractor.name, 'parameters of the extractor': self.extractor.fingerprint,
      'data set': self._dataset.fingerprint, 'split': self.settings.split, 'number of pictures': self.count,
      'image size': self.config.data.image_size, 'crop': 'center', 'resampling': self.config.data.resampling,
      'blur': float(radius),
    }  # fmt: skip
    name = f'{self.extractor.name}_{self.settings.split}_{self.count}' + (f'_blur{radius:g}' if radius else '')
    return self._cache.get(
      name, facts, lambda: self.extractor(blur.gaussian(self.pictures, radius), 'real pictures')
    )  # fmt: skip


def encoded(loaded: Bundle, prompts: Sequence[str]) -> np.ndarray:
  """Ids int32 [N, text_length - 1] of captions, cut where they are too long; [N, 0] for a model that reads none."""
  if loaded.tokenizer is None:
    return np.zeros((len(prompts), 0), np.int32)
  return encode_prompts(loaded.tokenizer, prompts, loaded.config.tokenizer.text_length, truncate=True)


def draw_samples(
  loaded: Bundle, mesh: Mesh, prompts: Sequence[str], seed: int, settings: SamplingConfig
) -> SampledImages:
  """Images for N prompts.

  Args:
    loaded: the model.
    mesh: of the devices.
    prompts: captions, cut where they are too long; '' for a model that reads none.
    seed: of the noise.
    settings: of sampling.
  """
  config, tokenizer = loaded.config, loaded.tokenizer
  sampler = make_sampler(config, tokenizer, mesh, settings)
  text = encoded(loaded, prompts)
  with Progress('drawing', len(prompts), 'token', enabled=jax.process_index() == 0) as progress:
    return sampler.draw(loaded.params, text, seed, progress.update_of)
