"""The metrics of `python -m dalle_jax.evaluate`: how to measure each, and what it needs.

To add a metric, add an entry to `METRICS`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from dalle_jax.config import Config
from dalle_jax.evaluation import (  # fmt: skip
  diversity,
  elbo,
  figures,
  frechet,
  inception_score,
  judge,
  kernel,
  manifold,
  prompt_accuracy,
  reconstruction,
  token_likelihood,
)
from dalle_jax.evaluation.figures import Figure
from dalle_jax.jobs.evaluate.evaluation_settings import ALL, EvaluationSettings
from dalle_jax.jobs.evaluate.measured import Measured

Figures = dict[str, Figure]


def measure_elbo(measured: Measured) -> Figures:
  """The evidence lower bound and its terms; see `evaluation.elbo`."""
  loaded, config = measured.loaded, measured.config
  with measured.progress('elbo', measured.count) as progress:
    prior = loaded.prior if 'prior' in loaded.params else None
    terms = elbo.measure(
      loaded.dvae, prior, config.dvae.min_log_scale, loaded.params, measured.batches(), measured.mesh,
      measured.settings.seed, progress.update,
    )  # fmt: skip
  flat = elbo.summarize(terms, _num_dims(config), config.image_length, config.dvae.kl_weight)
  return figures.from_flat({f'elbo/{name}': value for name, value in flat.items()}, measured.count)


def measure_reconstruction(measured: Measured) -> Figures:
  """PSNR in dB and SSIM of reconstructions; with features, also their Fréchet distance from the real images."""
  originals, (_, reconstructions) = measured.pictures, measured.reconstructed
  measures = {'reconstruction/psnr': figures.mean(reconstruction.psnr(originals, reconstructions))}
  if min(originals.shape[1:3]) >= reconstruction.SSIM_WINDOW:
    measures['reconstruction/ssim'] = figures.mean(reconstruction.ssim(originals, reconstructions))
  if measured.extractor and measured.count > 1:
    real, reconstructed = measured.real_features(), measured.extractor(reconstructions, 'reconstructions')
    measures[f'rfid/{measured.extractor.name}'] = _frechet(real, reconstructed, paired=True)
  return measures


def measure_codebook(measured: Measured) -> Figures:
  """Perplexity of the codes and the share of codes in use, over all tokens of the real images."""
  codes = measured.codes
  scores = reconstruction.codebook_scores(codes, measured.config.dvae.image_vocab_size)
  return {name: Figure(scores[name], None, codes.size) for name in ('codebook/perplexity', 'codebook/use')}


def measure_likelihood(measured: Measured) -> Figures:
  """The negative log-likelihood of captions and codes under the prior or the sequence model, in several units."""
  model, _ = measured.loaded.stream_model
  rows, nats = measured.token_nats
  flat = token_likelihood.summarize(nats, np.asarray(model.counted(rows)), model.text_length)
  summary = figures.from_flat(flat, measured.count)
  per_image = summary['nats_per_image']
  costs = {'bits_per_image_token': summary['bits_per_image_token']}
  costs['nats_per_image_token'] = figures.scaled(summary['bits_per_image_token'], math.log(2))
  costs['nats_per_image'] = per_image
  costs['bits_per_image'] = figures.scaled(per_image, 1 / math.log(2))
  costs['bits_per_dim'] = figures.scaled(per_image, 1 / (math.log(2) * _num_dims(measured.config)))
  if model.text_length:
    costs['bits_per_text_token'] = summary['bits_per_text_token']
    costs['nats_per_text_token'] = figures.scaled(summary['bits_per_text_token'], math.log(2))
    costs['nats_per_caption'] = summary['nats_per_caption']
  return {f'likelihood/{name}': figure for name, figure in costs.items()}


def measure_fid(measured: Measured) -> Figures:
  """The Fréchet distance between generated and real images."""
  real, drawn = measured.compared_features()
  if len(drawn) <= real.shape[1]:
    logging.warning(
      'The Fréchet distance of %d images with %d features is far too large, because there are no more images than '
      'features. Compare it only at the same number of images, or use the metric kid, which has no such bias.',
      len(drawn), real.shape[1],
    )  # fmt: skip
  return {f'fid/{measured.needed_extractor.name}': _frechet(real, drawn, measured.paired)}


def measure_blurred_fid(measured: Measured) -> Figures:
  """The Fréchet distance after blurring both generated and real images, for each radius (figure 9a)."""
  distances = {}
  for radius in measured.settings.blur_radii:
    real, drawn = measured.compared_features(radius)
    distances[f'blurred_fid/{measured.needed_extractor.name}/{radius:g}'] = _frechet(real, drawn, measured.paired)
  return distances


def _frechet(x: np.ndarray, y: np.ndarray, paired: bool) -> Figure:
  """The Fréchet distance between features [N, F] and [M, F]; `paired`: row i of both belongs to the same image."""
  value = frechet.distance(frechet.fit(x), frechet.fit(y))
  return Figure(value, frechet.stderr(x, y, paired), min(len(x), len(y)))


def measure_kid(measured: Measured) -> Figures:
  """The kernel distance between generated and real images."""
  distance = kernel.distance(*measured.compared_features(), measured.settings.seed, measured.paired)
  return {f'kid/{measured.needed_extractor.name}': distance}


def measure_precision_recall(measured: Measured) -> Figures:
  """The share of generated images that resemble a real one, and of real images that resemble a generated one."""
  captions = measured.samples.prompts if measured.paired else None
  precision, recall = manifold.precision_recall(*measured.compared_features(), groups=captions)
  name = measured.needed_extractor.name
  return {f'precision/{name}': precision, f'recall/{name}': recall}


def measure_inception_score(measured: Measured) -> Figures:
  """The Inception score of generated images and, as a reference, of real images."""
  logits = measured.needed_extractor.logits
  assert logits is not None, 'choose refuses this metric without --features=inception, which has classes'
  real, drawn = (inception_score.score(logits(features)) for features in measured.compared_features())
  return {'inception_score/drawn': drawn, 'inception_score/real': real}


def measure_clip_score(measured: Measured) -> Figures:
  """Cosines between captions and generated images and, as a reference, between captions and real images."""
  assert measured.ranker is not None, 'choose refuses this metric without --reranker'
  samples, similarities = measured.samples, {}
  for name, images in (('drawn', samples.images), ('real', measured.pictures[measured.captioned])):
    cosines = measured.ranker.scores(samples.prompts, images[:, None])[:, 0]
    if not np.isfinite(cosines).all():
      raise ValueError(
        f'--reranker {measured.settings.reranker} gives scores that are NaN or infinite; its parameters are damaged.'
      )
    similarities[f'clip_score/{name}/cosine'] = figures.mean(cosines, samples.prompts)
    similarities[f'clip_score/{name}/score'] = figures.mean(100 * np.maximum(cosines, 0), samples.prompts)
  return similarities


def measure_prompt_accuracy(measured: Measured) -> Figures:
  """The share of generated images that show everything their captions say, by a judge; see `evaluation.judge`."""
  samples = measured.samples
  shares = prompt_accuracy.shares(samples.prompts, judge.judge(samples.prompts, samples.images))
  return {f'prompt_accuracy/{name}'.rstrip('/'): figure for name, figure in shares.items()}


def measure_diversity(measured: Measured) -> Figures:
  """How much the images of one prompt differ: means over prompts."""
  samples = measured.samples
  images = samples.all_images[samples.groups]
  measures = {
    'diversity/pixels': figures.mean(diversity.pixel_distance(images)),
    'diversity/distinct_grids': figures.mean(diversity.num_distinct(samples.all_codes[samples.groups])),
  }
  if measured.extractor:
    features = measured.extractor(images.reshape(-1, *images.shape[2:]), 'generated images')
    grouped = features.reshape(*images.shape[:2], -1)
    measures[f'diversity/{measured.extractor.name}'] = figures.mean(diversity.pairwise_distance(grouped))
    measures[f'diversity/{measured.extractor.name}_vendi'] = figures.mean(diversity.vendi(grouped))
  return measures


def _num_dims(config: Config) -> int:
  """The number of values in an image: 3 H W."""
  return 3 * config.data.image_size**2


# --- The needs of metrics. Each function returns what is missing, in words, or '' if nothing is. ---


def _draws(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  return '' if {'prior', 'model'} & set(parts) else 'a model that generates images; this one holds the dVAE only'


def _reads_captions(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  return '' if config.reads_captions else 'a model that reads captions (a prior, or config.model.tokens=text_image)'


def _features(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  choice = '--features=reranker --reranker=DIR, or --features=inception --inception=FILE'
  return '' if settings.features else f'features of images: {choice}'


def _inception(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  return '' if settings.features == 'inception' else '--features=inception --inception=FILE'


def _reranker(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  return '' if settings.reranker else '--reranker=DIR, the model directory of a reranker'


def _shapes(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  source = settings.source_of(config)
  needed = f'captioned_shapes, the only data with a judge (--source); these data are {source}'
  return '' if source == 'captioned_shapes' else needed


@dataclasses.dataclass(frozen=True)
class Metric:
  """How to measure a metric, and what it needs."""

  measure: Callable[[Measured], Figures]
  needs: tuple[Callable[[EvaluationSettings, Config, Sequence[str]], str], ...] = ()  # each returns what is missing
  min_images: int = 1
  pictures: bool = False  # whether it needs the pixels of real images


METRICS = {
  'elbo': Metric(measure_elbo, pictures=True),
  'reconstruction': Metric(measure_reconstruction, pictures=True),
  'codebook': Metric(measure_codebook),
  'likelihood': Metric(measure_likelihood, (_draws,)),
  'fid': Metric(measure_fid, (_draws, _features), min_images=2, pictures=True),
  'kid': Metric(measure_kid, (_draws, _features), min_images=4, pictures=True),
  'precision_recall': Metric(measure_precision_recall, (_draws, _features), min_images=manifold.K + 1, pictures=True),
  'inception_score': Metric(measure_inception_score, (_draws, _inception), min_images=inception_score.SPLITS),
  'blurred_fid': Metric(measure_blurred_fid, (_draws, _features), min_images=2, pictures=True),
  'clip_score': Metric(measure_clip_score, (_draws, _reads_captions, _reranker), pictures=True),
  'prompt_accuracy': Metric(measure_prompt_accuracy, (_draws, _reads_captions, _shapes)),
  'diversity': Metric(measure_diversity, (_draws, _reads_captions)),
}


def choose(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> list[str]:
  """The names of the metrics to measure. ALL stands for all metrics whose needs are met.

  Args:
    settings: the settings of the evaluation.
    config: the model's configuration.
    parts: the parts in the model directory.

  Raises:
    ValueError: a metric is unknown, or something that it needs is missing.
  """
  if settings.metrics == (ALL,):
    return [name for name, metric in METRICS.items() if not _missing(metric, settings, config, parts)]
  unknown = [name for name in settings.metrics if name not in METRICS]
  if unknown or not settings.metrics:
    names = ','.join(settings.metrics)
    raise ValueError(f'--metrics is {names!r}; it must list one or more of {", ".join(METRICS)}, or be {ALL}.')
  chosen = list(dict.fromkeys(settings.metrics))
  problems = [f'{name} needs {"; and ".join(missing)}' for name in chosen
              if (missing := _missing(METRICS[name], settings, config, parts))]  # fmt: skip
  if problems:
    raise ValueError('--metrics: ' + '. '.join(problems) + '.')
  return chosen


def _missing(metric: Metric, settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> list[str]:
  """The needs of a metric that are not met, in words."""
  return [missing for need in metric.needs if (missing := need(settings, config, parts))]


def check_count(chosen: Sequence[str], count: int) -> None:
  """Raises ValueError if there are too few images for a metric."""
  for name in chosen:
    if count < METRICS[name].min_images:
      raise ValueError(f'--metrics={name} needs at least {METRICS[name].min_images} images; there are {count}.')


def without_pictures(chosen: Sequence[str], settings: EvaluationSettings) -> list[str]:
  """The metrics that data of image codes can serve.

  Raises:
    ValueError: there are none, or `settings` names one that needs pictures.
  """
  needing = [name for name in chosen if METRICS[name].pictures]
  remaining = [name for name in chosen if name not in needing]
  problem = f'these data hold image codes, and {", ".join(needing)} needs pictures'
  if needing and (settings.metrics != (ALL,) or not remaining):
    raise ValueError(f'--metrics: {problem}. Give the pictures with --data=PATH, or other metrics.')
  if needing:
    logging.warning('%s: left out. Give the pictures with --data=PATH to measure them.', problem)
  return remaining
