"""Scores, sheets of images and the report of a model of images.

The scores are a fixed list of metrics of `python -m dalle_jax.evaluate`. Some have other names in scores.json.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from dalle_jax import stages
from dalle_jax.config import Config
from dalle_jax.data.checks.seen import Overlap
from dalle_jax.evaluation import judge, prompt_accuracy, sequence_likelihood, token_likelihood
from dalle_jax.evaluation.figures import Figure
from dalle_jax.jobs import examples, report_blocks
from dalle_jax.jobs.choose import choosing
from dalle_jax.jobs.evaluate import metrics
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.evaluate.measured import Measured
from dalle_jax.jobs.sheet_samples import PromptSamples, draw_sheet
from dalle_jax.jobs.train import reranker_scores
from dalle_jax.jobs.train.picture_data import PictureExperiment, image_tokens_task
from dalle_jax.jobs.train.sheet_hooks import NUM_RECONSTRUCTIONS
from dalle_jax.jobs.train.workspace import print_scores
from dalle_jax.reporting import curves, gallery, html, sheets
from dalle_jax.reporting.run_curves import run_curves
from dalle_jax.sampling.sampler import Sampler, make_sampler
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.metrics_log import FILE_NAME as METRICS
from dalle_jax.training.metrics_log import read_metrics

CONTRAST_NOTE = (
  'Contrast: how often a caption scores its own image above an image that differs in a single attribute. '
  "'all': above every such image. A random score reaches 0.5 for a single attribute."
)
CODES_NOTE = (
  'The data hold image codes, at least in part. Reconstructions are therefore not compared with pictures, and held-out '
  'images are shown as the dVAE decodes them.'
)


class SheetFile(NamedTuple):
  """A sheet, and its file name in the work directory."""

  name: str
  image: Image.Image


class PictureResults(NamedTuple):
  """Results of measuring a model: scores, sheets, blocks of the report, and curves as (title, SVG)."""

  scores: dict[str, float]
  sheets: list[SheetFile]
  blocks: list[report_blocks.Block]
  curves: list[tuple[str, str]]


def measure(experiment: PictureExperiment, params: dict[str, Any]) -> PictureResults:
  """Measure a trained model.

  Args:
    experiment: The finished run.
    params: The parameters of each part, as in the bundle.
  """
  if 'reranker' in params:
    return _measure_reranker(experiment, params)
  if 'dvae' not in params:
    return PictureResults({}, [], [], [])
  config, dataset = experiment.config, experiment.dataset
  split = examples.held_out_split(dataset)
  measured = _measured(experiment, params, split, config.evaluation.num_reconstructions)
  results = _measure_reconstructions(measured, 'reconstructions.png')
  codes = measured.codes
  results.scores['codebook/num_tokens'] = float(codes.size)
  if 'held_out' in dataset.splits:
    results = _joined(results, _measure_held_out(experiment, params))
  sample_blocks: list[report_blocks.Block] = []
  if config.task == 'sequence':
    results = _joined(results, _measure_tokens(experiment, params, split))
  if measured.loaded.drawing_part:
    sample_results, groups = _measure_samples(experiment, params)
    results = _joined(results, sample_results)
    sample_blocks = report_blocks.token_blocks(measured, groups)
  blocks = [
    *(
      [] if not measured.has_pictures else [report_blocks.reconstructions(measured.pictures, measured.reconstructed[1])]
    ),
    *sample_blocks,
    report_blocks.codebook(measured.loaded.dvae, params['dvae'], codes, experiment.mesh),
  ]
  return results._replace(blocks=blocks)


def _measure_held_out(experiment: PictureExperiment, params: dict[str, Any]) -> PictureResults:
  """Measure reconstructions of combinations that never occur in training."""
  measured = _measured(experiment, params, 'held_out', experiment.config.evaluation.num_reconstructions)
  results = _measure_reconstructions(measured, 'reconstructions_held_out.png')
  return results._replace(scores={name.replace('/', '/held_out/', 1): value for name, value in results.scores.items()})


def _measure_reconstructions(measured: Measured, file: str) -> PictureResults:
  """Measure the codebook and, for pictures but not for image codes, reconstructions."""
  if not measured.has_pictures:
    return PictureResults(_scores(metrics.measure_codebook(measured)), [], [], [])
  scores = _scores(metrics.measure_reconstruction(measured)) | _scores(metrics.measure_codebook(measured))
  originals, decoded = measured.pictures[:NUM_RECONSTRUCTIONS], measured.reconstructed[1][:NUM_RECONSTRUCTIONS]
  return PictureResults(scores, [SheetFile(file, sheets.reconstruction_sheet(originals, decoded))], [], [])


def _joined(first: PictureResults, second: PictureResults) -> PictureResults:
  return PictureResults(
    first.scores | second.scores,
    first.sheets + second.sheets,
    first.blocks + second.blocks,
    first.curves + second.curves,
  )


def _measured(experiment: PictureExperiment, params: dict[str, Any], split: str, most: int, **options: Any) -> Measured:
  """The data for metrics: the first images of a split, at most `most`, with the experiment's settings."""
  config = experiment.config
  settings = EvaluationSettings(model='', split=split, batch_size=config.evaluation.batch_size, seed=config.seed)
  count = min(most, len(experiment.dataset.open(split)))
  return Measured(settings, experiment.bundle(params), experiment.dataset, count, experiment.mesh, **options)


def _scores(figures: dict[str, Figure]) -> dict[str, float]:
  return {name: figure.value for name, figure in figures.items()}


def _measure_tokens(experiment: PictureExperiment, params: dict[str, Any], split: str) -> PictureResults:
  """Measure how well a sequence model predicts image tokens.

  For a model without captions, also measure the bits per token by context length.
  """
  model = image_tokens_task(experiment).model
  most = max(experiment.config.evaluation.num_tokens // model.length, 1)
  rows, nats = _measured(experiment, params, split, most).token_nats
  summary = token_likelihood.summarize(nats, np.asarray(model.counted(rows)), model.text_length)
  scores = {f'{split}/{name}': value for name, value in summary.items()}
  scores['model/num_values'] = float(sequence_likelihood.num_values(params['model']))
  if model.text_length:
    return PictureResults(scores, [], [], [])
  lengths, bits = token_likelihood.by_position(nats)
  scores |= {f'context/{length}': float(value) for length, value in zip(lengths, bits, strict=True)}
  title = curves.POSITION_TITLE
  return PictureResults(scores, [], [], [(title, curves.context_svg({split: (lengths, bits)}, title))])


def _measure_samples(
  experiment: PictureExperiment, params: dict[str, Any]
) -> tuple[PictureResults, list[report_blocks.Group]]:
  """Sample images for captions of each split. For captioned shapes, also measure prompt accuracy."""
  config, dataset = experiment.config, experiment.dataset
  sampler = make_sampler(config, experiment.tokenizer, experiment.mesh, config.sampling)
  if experiment.tokenizer is None:
    return _uncaptioned_samples(config, sampler, params)
  is_judged = config.data.source == 'captioned_shapes'
  scores: dict[str, float] = {}
  files, groups = [], []
  for split, title in examples.sheet_splits(dataset).items():
    prompts = _sheet_prompts(config, examples.captions(dataset, split), is_judged)
    samples = draw_sheet(config, experiment.tokenizer, sampler, params, prompts)
    right = judge.judge_grid(prompts, samples.images) if is_judged else None
    files.append(SheetFile(f'samples_{split}.png', sheets.lay_out(prompts, samples.images, right)))
    groups.append(report_blocks.Group(f'Samples: {title}', _sampling_note(config), prompts, samples, right))
  if is_judged:
    for split in ('validation', 'held_out'):
      scores |= _prompt_accuracy(experiment, params, split)
  return PictureResults(scores, files, [], []), groups


def _uncaptioned_samples(
  config: Config, sampler: Sampler, params: dict[str, Any]
) -> tuple[PictureResults, list[report_blocks.Group]]:
  """Sample images from a model that reads no captions."""
  samples = draw_sheet(config, None, sampler, params, [])
  codes, images = (grids.reshape(1, -1, *grids.shape[2:]) for grids in (samples.codes, samples.images))
  row = PromptSamples(samples.text[:1], codes, images)
  group = report_blocks.Group('Samples', _sampling_note(config), [''], row, None)
  return PictureResults({}, [SheetFile('samples.png', sheets.lay_out([], samples.images))], [], []), [group]


def _sheet_prompts(config: Config, captions: Sequence[str], is_judged: bool) -> list[str]:
  """Choose the prompts of a sheet from a split's captions."""
  count = config.evaluation.sheet_prompts
  if is_judged:  # half of the prompts with one object and half with two, if the split has both
    return prompt_accuracy.choose(captions, -(-count // 2))[:count]
  return examples.spread(captions, count)


def _sampling_note(config: Config) -> str:
  settings = config.sampling
  tokens = f'the {settings.top_k} most likely tokens' if settings.top_k else 'all tokens'
  return (
    f'Sampled at temperature {settings.temperature:g} from {tokens}, with seed {config.seed}. All samples are shown.'
  )


def _prompt_accuracy(experiment: PictureExperiment, params: dict[str, Any], split: str) -> dict[str, float]:
  """Measure the share of images that show what their prompts say, with one image for each chosen caption."""
  config, captions = experiment.config, examples.captions(experiment.dataset, split)
  measured = _measured(
    experiment, params, split, len(captions), prompts=prompt_accuracy.choose(captions, config.evaluation.num_prompts),
    sample_seed=stream_seed(config.seed, split), sampling=config.sampling,
  )  # fmt: skip
  figures = metrics.measure_prompt_accuracy(measured)
  accuracies = {name.removeprefix('prompt_accuracy').removeprefix('/'): figure for name, figure in figures.items()}
  return prompt_accuracy.flat_scores(accuracies, split)


def _measure_reranker(experiment: PictureExperiment, params: dict[str, Any]) -> PictureResults:
  """Measure how often the reranker retrieves the right image, and how well it tells similar images apart."""
  config = experiment.config
  scores, retrieved = reranker_scores.measure(config, experiment.dataset, experiment.bundle(params), experiment.mesh)
  files, blocks = [], []
  for split, (prompts, images, cosines) in retrieved.items():
    right = judge.judge_grid(prompts, images) if config.data.source == 'captioned_shapes' else None
    num_images = int(scores[f'retrieval/{split}/num_captions'])
    note = (
      f'For some captions of the {split} split, the best of its {num_images} images. Below each image: the cosine '
      'similarity of caption and image.'
    )
    files.append(SheetFile(f'found_{split}.png', sheets.lay_out(prompts, images, right)))
    blocks.append((f'Retrieved images: {split}', gallery.samples(prompts, images, cosines, note, right)))
  return PictureResults(scores, files, blocks, [])


def write(experiment: PictureExperiment, results: PictureResults) -> dict[str, float]:
  """Write the sheets, scores.json and report.html, print their paths, and return all scores."""
  config, space = experiment.config, experiment.space
  overlaps = experiment.dataset.overlaps
  scores = results.scores | _last_losses(space.path) | _seen(overlaps) | space.seconds()
  if jax.process_index() != 0:
    return scores
  for sheet in results.sheets:
    sheets.save_png(sheet.image, space.path / sheet.name, None)
  space.write('scores.json', scores)
  html.write_report(
    space.path / 'report.html',
    title=f'dalle_jax: {space.path.name}',
    summary=scores,
    config=config.to_dict(),
    curves=[*results.curves, *run_curves(space.path)],
    blocks=[*report_blocks.choices(choosing.choices_of(space.path) if config.choice.enabled else []), *results.blocks],
    notes=[
      *_notes(config, examples.held_out_split(experiment.dataset)),
      *([CODES_NOTE] if experiment.dataset.codes else []),
      *(overlap.describe() for overlap in overlaps.values()),
    ],
  )
  print_scores(space.path, scores, [*(sheet.name for sheet in results.sheets), 'scores.json', 'report.html', 'model'])
  return scores


def _last_losses(workdir: Path) -> dict[str, float]:
  """The held-out metrics of each stage's last evaluation, under the names STAGE/NAME."""
  scores: dict[str, float] = {}
  for stage in stages.names():
    file = workdir / stage / METRICS
    for line in read_metrics(file) if file.exists() else []:
      scores |= {
        f'{stage}/{name[5:]}': value for name, value in line.items() if name.startswith('eval/') and value is not None
      }
  return scores


def _seen(overlaps: Mapping[str, Overlap]) -> dict[str, float]:
  """How many records of each held-out split also occur in training, as scores."""
  return {
    f'seen/{split}/{name}': float(getattr(overlap, name))
    for split, overlap in overlaps.items()
    for name in ('images', 'captions', 'left_out')
  }


def _notes(config: Config, split: str) -> list[str]:
  """Notes that explain the scores of the report; `split` is what reconstructions are measured on."""
  is_judged = config.data.source == 'captioned_shapes'
  if config.task == 'reranker':
    return [
      'A reranker. Retrieval: how often the right caption among num_captions scores best for an image, or is among the '
      'best 5; and the same for the right image of a caption. Other captions with the same meaning count as wrong.',
      *([CONTRAST_NOTE] if is_judged else []),
    ]
  notes = []
  if config.task == 'sequence':
    tokens = {'image': "a dVAE's codes", 'text_image': "captions and a dVAE's codes"}[config.model.tokens]
    notes.append(f'A model of kind {config.model.kind} over {tokens}.')
  if 'dvae' in dict(config.task_stages[-1].parts):
    notes.append(
      'All scores use the averaged parameters. PSNR and SSIM are means over the scores of at most '
      f'{config.evaluation.num_reconstructions} images of the split {split}.'
    )
  if is_judged and config.reads_captions:
    notes.append(
      'Prompt accuracy: the model samples one image for each prompt. A judge, which sees only the image, names the '
      'attributes of its objects. The image counts if they match every attribute in the prompt.'
    )
  return notes
