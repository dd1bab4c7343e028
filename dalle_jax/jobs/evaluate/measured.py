"""The data that metrics share: real images and captions, reconstructions, generated images, and their features.

Each of these is computed when a metric first asks for it, and only once.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax.bundle import Bundle
from dalle_jax.config import SamplingConfig
from dalle_jax.data.fingerprints import hash_of
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
  """Generated images: one for each caption, and further ones for some captions."""

  prompts: list[str]  # the N captions
  codes: np.ndarray  # int32 [N, h, w]
  images: np.ndarray  # uint8 [N, H, W, 3]
  groups: np.ndarray  # int [P, K]: for P of the prompts, the rows of `all_images` with their K images; P may be 0
  all_codes: np.ndarray  # int32 [M, h, w], M >= N: the codes above, then the codes of the further images
  all_images: np.ndarray  # uint8 [M, H, W, 3]


class Measured:
  """The data for a model's metrics: the first `count` images of a split, and what the model computes from them.

  Images that cannot be read are left out, so that the attributes `source` and `count` may have fewer.

  Args:
    settings: the settings of the evaluation.
    loaded: the model.
    dataset: the data set; `settings.split` names its split.
    count: the number of images.
    mesh: the device mesh.
    extractor: the feature extractor, if a metric needs one.
    ranker: the reranker, if a metric needs one.
    cache: the cache of the real images' features, if a metric needs features.
    grouped: whether a metric needs several images per prompt.
    prompts: the prompts to generate images for; None for the captions of the real images.
    sample_seed: the seed of the generated images; None derives it from the settings.
    sampling: the sampling settings; None merges `settings` over the model's own.
  """

  def __init__(
    self, settings: EvaluationSettings, loaded: Bundle, dataset: Dataset, count: int, mesh: Mesh, *,
    extractor: Extractor | None = None, ranker: Ranker | None = None, cache: Cache | None = None, grouped: bool = False,
    prompts: list[str] | None = None, sample_seed: int | None = None, sampling: SamplingConfig | None = None,
  ):  # fmt: skip
    self.settings, self.loaded, self.config = settings, loaded, loaded.config
    if settings.max_image_pixels is not None:
      data = dataclasses.replace(self.config.data, max_image_pixels=settings.max_image_pixels)
      self.config = dataclasses.replace(self.config, data=data)
    self.mesh, self.extractor, self.ranker = mesh, extractor, ranker
    self._dataset, self._cache, self._grouped = dataset, cache, grouped
    self._prompts, self._sample_seed, self._sampling = prompts, sample_seed, sampling
    records = dataset.open(settings.split)
    self._seen_in_training = sorted(getattr(records, 'left_out', ()))  # what `seen_records` has left out
    self.source = examples.readable(self.config, records, settings.split, count)
    self.count = len(self.source)

  @property
  def needed_extractor(self) -> Extractor:
    """The feature extractor, for a metric that needs one."""
    assert self.extractor is not None, 'metrics.choose refuses a metric that needs features without an extractor'
    return self.extractor

  def has(self, name: str) -> bool:
    """Whether a metric has used a cached property, such as 'samples'."""
    return name in vars(self)

  def batches(self) -> Any:
    """The images and captions in batches of one shape; see `examples.batches`."""
    tokenizer = self.loaded.caption_tokenizer
    return examples.batches(self.config, tokenizer, self.source, self.count, self.settings.rows, self.mesh)

  def progress(self, name: str, total: int, unit: str = 'image') -> Progress:
    """A progress display on the first process; the other processes show nothing."""
    return Progress(name, total, unit, enabled=jax.process_index() == 0)

  @functools.cached_property
  def _read(self) -> dict[str, np.ndarray]:
    with self.progress('reading', self.count) as progress:
      batches, done = [], 0
      for rows, batch in self.batches():
        batches.append({name: values[:rows] for name, values in batch.items()})
        done += rows
        progress.update(done)
    if done != self.count:
      raise ValueError(
        f'{self.count - done} of {self.count} records of the split {self.settings.split!r} could be read when the '
        'command started, and cannot be read any more. Run the command again to leave them out.'
      )
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

  @property
  def has_pictures(self) -> bool:
    """Whether the data hold pictures alone, and no image codes."""
    return not self._dataset.codes

  @property
  def pictures(self) -> np.ndarray:
    """Real images at the model's size, uint8 [N, H, W, 3]. Not for data of image codes."""
    assert not self._dataset.codes, 'metrics that need pictures are left out for data of image codes'
    return self._read['image']

  @functools.cached_property
  def codes(self) -> np.ndarray:
    """The real images' codes, int32 [N, h, w]: stored ones, or those of the dVAE."""
    if not self._dataset.codes:
      return self.reconstructed[0]
    stored, grid = self._read['codes'], self._dataset.codes[0].grid
    codes = stored.reshape(len(stored), *grid)
    missing = np.flatnonzero(stored[:, 0] < 0)  # pictures in a mixture with codes
    if missing.size:
      dvae, params = self.loaded.dvae, self.loaded.params['dvae']
      images, codes = self._read['image'][missing], codes.copy()
      codes[missing] = reconstruction.encode(dvae, params, images, self.mesh, self.settings.rows)
    return codes

  @functools.cached_property
  def shown(self) -> np.ndarray:
    """The real images, uint8 [N, H, W, 3]; for data of image codes, the images that the dVAE decodes from them."""
    if not self._dataset.codes:
      return self.pictures
    dvae, params = self.loaded.dvae, self.loaded.params['dvae']
    return reconstruction.decode(dvae, params, self.codes, self.mesh, self.settings.rows)

  @property
  def text(self) -> np.ndarray:
    """Token ids of the real images' captions, int32 [N, text_length - 1]; [N, 0] if the model reads no captions."""
    return self._read.get('text', np.zeros((self.count, 0), np.int32))

  @functools.cached_property
  def captions(self) -> list[str]:
    """The captions of the real images; '' for an image without one."""
    return [self.source[i]['caption'].strip() for i in range(self.count)]

  @property
  def captioned(self) -> list[int]:
    """The indices of the real images that have a caption.

    Raises:
      ValueError: no image has a caption.
    """
    indices = [i for i, caption in enumerate(self.captions) if caption]
    if not indices:
      raise ValueError(
        f'None of the {self.count} images of the split {self.settings.split!r} has a caption to generate an image for; '
        'use other data (--data), or metrics that need no captions.'
      )
    return indices

  @functools.cached_property
  def reconstructed(self) -> tuple[np.ndarray, np.ndarray]:
    """The real images' codes, int32 [N, h, w], and their reconstructions by the dVAE, uint8 [N, H, W, 3]."""
    dvae, params = self.loaded.dvae, self.loaded.params['dvae']
    return reconstruction.reconstruct(dvae, params, self.pictures, self.mesh, self.settings.rows)

  @functools.cached_property
  def token_nats(self) -> tuple[np.ndarray, np.ndarray]:
    """Captions and codes as token sequences, int32 [N, T], and the cost -ln p of each token in nats, float64 [N, T]."""
    model, part = self.loaded.stream_model
    codes = self.codes
    rows = np.asarray(model.stream(self.text, codes.reshape(len(codes), -1)))
    with self.progress('likelihood', len(rows)) as progress:
      params, batch_size = self.loaded.params[part], self.settings.rows
      return rows, sequence_likelihood.nats(model, params, rows, self.mesh, batch_size, progress.update_of)

  @functools.cached_property
  def samples(self) -> Samples:
    """One image per caption and, if metrics need several images per prompt, further ones for the first few captions.

    The noise of an image depends on its number. The further images come last, so they do not change the others.
    """
    prompts = self._prompts
    if prompts is None:
      prompts = [self.captions[i] for i in self.captioned] if self.config.reads_captions else [''] * self.count
    groups = np.zeros((0, self.settings.images_per_prompt), int)
    if self._grouped:
      # The row of the first image of each distinct prompt.
      first_rows = sorted({prompt: row for row, prompt in reversed(list(enumerate(prompts)))}.values())
      first_rows = first_rows[: self.settings.diversity_prompts]
      num_further = len(first_rows) * (self.settings.images_per_prompt - 1)
      further_rows = len(prompts) + np.arange(num_further).reshape(len(first_rows), -1)
      groups = np.concatenate([np.array(first_rows)[:, None], further_rows], axis=1)
    further_prompts = [prompts[group[0]] for group in groups for _ in group[1:]]
    seed = stream_seed(self.settings.seed, 'samples') if self._sample_seed is None else self._sample_seed
    all_prompts = [*prompts, *further_prompts]
    sampling = self._sampling or self.settings.sampling(self.config.sampling, len(all_prompts))
    drawn = draw_samples(self.loaded, self.mesh, all_prompts, seed, sampling)
    codes, images = drawn.codes, drawn.images
    count = len(prompts)
    return Samples(prompts, codes[:count], images[:count], groups, codes, images)

  @functools.cached_property
  def _drawn_features(self) -> np.ndarray:
    return self.needed_extractor(self.samples.images, 'generated images')

  def drawn_features(self, radius: float = 0) -> np.ndarray:
    """Features of `samples.images` after a blur of `radius` pixels, float32 [N, F]."""
    if not radius:
      return self._drawn_features
    return self.needed_extractor(blur.gaussian(self.samples.images, radius), 'generated images')

  @property
  def paired(self) -> bool:
    """Whether generated image i belongs to the caption of the i-th real image that has one."""
    return self.config.reads_captions

  def compared_features(self, radius: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of real images and of as many generated images, float32 [N, F] each; see `paired`."""
    real = self.real_features(radius)
    return real[self.captioned] if self.paired else real, self.drawn_features(radius)

  def real_features(self, radius: float = 0) -> np.ndarray:
    """Features of all real images after a blur of `radius` pixels, float32 [N, F], from the cache if possible."""
    extractor, cache = self.needed_extractor, self._cache
    assert cache is not None, 'an extractor comes with a cache'
    facts = {
      'extractor': extractor.name, 'parameters of the extractor': extractor.fingerprint,
      'data set': self._dataset.fingerprint, 'split': self.settings.split, 'number of pictures': self.count,
      'image size': self.config.data.image_size, 'crop': 'center', 'resampling': self.config.data.resampling,
      'blur': float(radius),
    }  # fmt: skip
    if self._seen_in_training:
      facts['records seen in training'] = hash_of(self._seen_in_training)
    if self.source.left_out:
      facts['unreadable records'] = sorted(self.source.left_out)
    name = f'{extractor.name}_{self.settings.split}_{self.count}' + (f'_blur{radius:g}' if radius else '')
    return cache.get(name, facts, lambda: extractor(blur.gaussian(self.pictures, radius), 'real images'))


def encoded(loaded: Bundle, prompts: Sequence[str]) -> np.ndarray:
  """Token ids of captions, int32 [N, text_length - 1], cut if too long; [N, 0] if the model reads no captions."""
  if loaded.tokenizer is None:
    return np.zeros((len(prompts), 0), np.int32)
  return encode_prompts(loaded.tokenizer, prompts, loaded.config.tokenizer.text_length, truncate=True)


def draw_samples(
  loaded: Bundle, mesh: Mesh, prompts: Sequence[str], seed: int, settings: SamplingConfig
) -> SampledImages:
  """Generates one image for each of N prompts.

  Args:
    loaded: the model.
    mesh: the device mesh.
    prompts: the prompts, cut if too long; '' if the model reads no captions.
    seed: the seed of the noise.
    settings: the sampling settings.
  """
  config, tokenizer = loaded.config, loaded.tokenizer
  sampler = make_sampler(config, tokenizer, mesh, settings)
  text = encoded(loaded, prompts)
  with Progress('sampling', len(prompts), 'token', enabled=jax.process_index() == 0) as progress:
    return sampler.draw(loaded.params, text, seed, progress.update_of)
