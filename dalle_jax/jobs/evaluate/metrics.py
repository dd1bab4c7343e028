"""The metrics of `python -m dalle_jax.evaluate`: what each needs, and how it is measured. A new one is an entry."""

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
  """See `evaluation.elbo`."""
  loaded, config = measured.loaded, measured.config
  with measured.progress('elbo', measured.count) as progress:
    prior = loaded.prior if 'prior' in loaded.params else None
    found = elbo.measure(
      loaded.dvae, prior, config.dvae.min_log_scale, loaded.params, measured.batches(), measured.mesh,
      measured.settings.seed, progress.update,
    )  # fmt: skip
  flat = elbo.summarize(found, _num_dims(config), config.image_length, config.dvae.kl_weight)
  return figures.from_flat({f'elbo/{name}': value for name, value in flat.items()}, measured.count)


def measure_reconstruction(measured: Measured) -> Figures:
  """PSNR in dB and SSIM of pictures against what the dVAE makes of them; with features also their distance."""
  originals, (_, pictures) = measured.pictures, measured.reconstructed
  found = {'reconstruction/psnr': figures.mean(reconstruction.psnr(originals, pictures))}
  if min(originals.shape[1:3]) >= reconstruction.SSIM_WINDOW:
    found['reconstruction/ssim'] = figures.mean(reconstruction.ssim(originals, pictures))
  if measured.extractor and measured.count > 1:
    real, made = measured.real_features(), measured.extractor(pictures, 'reconstructions')
    found[f'rfid/{measured.extractor.name}'] = _frechet(real, made, paired=True)
  return found


def measure_codebook(measured: Measured) -> Figures:
  """How the codes are used, over all tokens of the pictures."""
  codes, _ = measured.reconstructed
  found = reconstruction.codebook_scores(codes, measured.config.dvae.image_vocab_size)
  return {name: Figure(found[name], None, codes.size) for name in ('codebook/perplexity', 'codebook/use')}


def measure_likelihood(measured: Measured) -> Figures:
  """What captions and codes cost, by the prior or by the sequence model in its place."""
  model, _ = measured.loaded.stream_model
  rows, nats = measured.token_nats
  flat = token_likelihood.summarize(nats, np.asarray(model.counted(rows)), model.text_length)
  found = figures.from_flat(flat, measured.count)
  per_image = found['nats_per_image']
  chosen = {'bits_per_image_token': found['bits_per_image_token']}
  chosen['nats_per_image_token'] = figures.scaled(found['bits_per_image_token'], math.log(2))
  chosen['nats_per_image'] = per_image
  chosen['bits_per_image'] = figures.scaled(per_image, 1 / math.log(2))
  chosen['bits_per_dim'] = figures.scaled(per_image, 1 / (math.log(2) * _num_dims(measured.config)))
  if model.text_length:
    chosen['bits_per_text_token'] = found['bits_per_text_token']
    chosen['nats_per_text_token'] = figures.scaled(found['bits_per_text_token'], math.log(2))
    chosen['nats_per_caption'] = found['nats_per_caption']
  return {f'likelihood/{name}': figure for name, figure in chosen.items()}


def measure_fid(measured: Measured) -> Figures:
  real, drawn = measured.compared_features()
  if len(drawn) <= real.shape[1]:
    logging.warning(
      'The Fréchet distance of %d pictures with %d features: with no more pictures than features it is far too large, '
      'and comparable at the same number only. The metric kid has no such bias.',
      len(drawn), real.shape[1],
    )  # fmt: skip
  return {f'fid/{measured.extractor.name}': _frechet(real, drawn, measured.paired)}


def measure_blurred_fid(measured: Measured) -> Figures:
  """Figure 9a: of pictures and samples that are both out of focus."""
  found = {}
  for radius in measured.settings.blur_radii:
    real, drawn = measured.compared_features(radius)
    found[f'blurred_fid/{measured.extractor.name}/{radius:g}'] = _frechet(real, drawn, measured.paired)
  return found


def _frechet(x: np.ndarray, y: np.ndarray, paired: bool) -> Figure:
  value = frechet.distance(frechet.fit(x), frechet.fit(y))
  return Figure(value, frechet.stderr(x, y, paired), min(len(x), len(y)))


def measure_kid(measured: Measured) -> Figures:
  found = kernel.distance(*measured.compared_features(), measured.settings.seed, measured.paired)
  return {f'kid/{measured.extractor.name}': found}


def measure_precision_recall(measured: Measured) -> Figures:
  precision, recall = manifold.precision_recall(*measured.compared_features())
  name = measured.extractor.name
  return {f'precision/{name}': precision, f'recall/{name}': recall}


def measure_inception_score(measured: Measured) -> Figures:
  real, drawn = (inception_score.score(measured.extractor.logits(part)) for part in measured.compared_features())
  return {'inception_score/drawn': drawn, 'inception_score/real': real}


def measure_clip_score(measured: Measured) -> Figures:
  """Cosines of captions with the images drawn for them and, as a reference, with the real pictures."""
  samples, found = measured.samples, {}
  for name, images in (('drawn', samples.images), ('real', measured.pictures[measured.captioned])):
    cosines = measured.ranker.scores(samples.prompts, images[:, None])[:, 0]
    if not np.isfinite(cosines).all():
      raise ValueError(f'--reranker {measured.settings.reranker} gives scores that are no numbers; it is damaged.')
    found[f'clip_score/{name}/cosine'] = figures.mean(cosines)
    found[f'clip_score/{name}/score'] = figures.mean(100 * np.maximum(cosines, 0))
  return found


def measure_prompt_accuracy(measured: Measured) -> Figures:
  """The share of drawn images in which the judge finds all that their captions say."""
  samples = measured.samples
  found = prompt_accuracy.shares(samples.prompts, judge.judge(samples.prompts, samples.images))
  return {f'prompt_accuracy/{name}'.rstrip('/'): figure for name, figure in found.items()}


def measure_diversity(measured: Measured) -> Figures:
  """How the images of one prompt differ; means over prompts."""
  samples = measured.samples
  images = samples.all_images[samples.groups]
  found = {
    'diversity/pixels': figures.mean(diversity.pixel_distance(images)),
    'diversity/distinct_grids': figures.mean(diversity.num_distinct(samples.all_codes[samples.groups])),
  }
  if measured.extractor:
    flat = measured.extractor(images.reshape(-1, *images.shape[2:]), 'drawn pictures')
    grouped = flat.reshape(*images.shape[:2], -1)
    found[f'diversity/{measured.extractor.name}'] = figures.mean(diversity.pairwise_distance(grouped))
    found[f'diversity/{measured.extractor.name}_vendi'] = figures.mean(diversity.vendi(grouped))
  return found


def _num_dims(config: Config) -> int:
  return 3 * config.data.image_size**2


# --- What metrics need: a word about what is missing, or '' ---


def _draws(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  return '' if {'prior', 'model'} & set(parts) else 'a model that draws, and this one holds the dVAE alone'


def _reads_captions(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  return '' if config.reads_captions else 'a model that draws for captions (a prior, or config.model.tokens=text_image)'


def _features(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  choice = '--features=reranker --reranker=DIR, or --features=inception --inception=FILE'
  return '' if settings.features else f'features of pictures: {choice}'


def _inception(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  return '' if settings.features == 'inception' else '--features=inception --inception=FILE'


def _reranker(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  return '' if settings.reranker else '--reranker=DIR, the model directory of a reranker'


def _shapes(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> str:
  source = settings.source_of(config)
  return '' if source == 'captioned_shapes' else f'captioned_shapes, which can be judged; these data are {source}'


@dataclasses.dataclass(frozen=True)
class Metric:
  measure: Callable[[Measured], Figures]
  needs: tuple[Callable[[EvaluationSettings, Config, Sequence[str]], str], ...] = ()
  min_images: int = 1


METRICS = {
  'elbo': Metric(measure_elbo),
  'reconstruction': Metric(measure_reconstruction),
  'codebook': Metric(measure_codebook),
  'likelihood': Metric(measure_likelihood, (_draws,)),
  'fid': Metric(measure_fid, (_draws, _features), min_images=2),
  'kid': Metric(measure_kid, (_draws, _features), min_images=4),
  'precision_recall': Metric(measure_precision_recall, (_draws, _features), min_images=manifold.K + 1),
  'inception_score': Metric(measure_inception_score, (_draws, _inception), min_images=inception_score.SPLITS),
  'blurred_fid': Metric(measure_blurred_fid, (_draws, _features), min_images=2),
  'clip_score': Metric(measure_clip_score, (_draws, _reads_captions, _reranker)),
  'prompt_accuracy': Metric(measure_prompt_accuracy, (_draws, _reads_captions, _shapes)),
  'diversity': Metric(measure_diversity, (_draws, _reads_captions)),
}


def choose(settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> list[str]:
  """The names of the metrics to measure; of ALL those that can be.

  Args:
    settings: of the command.
    config: of the model.
    parts: that the model has.

  Raises:
    ValueError: a metric is not known, or cannot be measured, with what is missing.
  """
  if settings.metrics == (ALL,):
    return [name for name, metric in METRICS.items() if not _missing(metric, settings, config, parts)]
  unknown = [name for name in settings.metrics if name not in METRICS]
  if unknown or not settings.metrics:
    given = ','.join(settings.metrics)
    raise ValueError(f'--metrics is {given!r}; it must list one or more of {", ".join(METRICS)}, or be {ALL}.')
  chosen = list(dict.fromkeys(settings.metrics))
  problems = [f'{name} needs {"; and ".join(missing)}' for name in chosen
              if (missing := _missing(METRICS[name], settings, config, parts))]  # fmt: skip
  if problems:
    raise ValueError('--metrics: ' + '. '.join(problems) + '.')
  return chosen


def _missing(metric: Metric, settings: EvaluationSettings, config: Config, parts: Sequence[str]) -> list[str]:
  return [word for need in metric.needs if (word := need(settings, config, parts))]


def check_count(chosen: Sequence[str], count: int) -> None:
  """Refuses too few pictures. Raises ValueError."""
  for name in chosen:
    if count < METRICS[name].min_images:
      raise ValueError(f'--metrics={name} needs at least {METRICS[name].min_images} pictures; there are {count}.')
