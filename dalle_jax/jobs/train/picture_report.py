"""Scores, sheets of pictures and the report of a model of pictures.

The scores come from the metrics of `python -m dalle_jax.evaluate`, with a preset list and the names of a run's scores.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from dalle_jax import stages
from dalle_jax.config import Config
from dalle_jax.evaluation import judge, prompt_accuracy, sequence_likelihood, token_likelihood
from dalle_jax.evaluation.figures import Figure
from dalle_jax.jobs import examples, report_blocks
from dalle_jax.jobs.evaluate import metrics
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.evaluate.measured import Measured
from dalle_jax.jobs.sheet_samples import PromptSamples, draw_sheet
from dalle_jax.jobs.train import reranker_scores
from dalle_jax.jobs.train.experiment import Experiment
from dalle_jax.jobs.train.sheet_hooks import NUM_RECONSTRUCTIONS
from dalle_jax.jobs.train.workspace import print_scores
from dalle_jax.reporting import curves, gallery, html, sheets
from dalle_jax.reporting.run_curves import run_curves
from dalle_jax.sampling.sampler import Sampler, make_sampler
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.metrics_log import FILE_NAME as METRICS
from dalle_jax.training.metrics_log import read_metrics

CONTRAST_NOTE = (
  "Contrast: how often a caption's own picture scores above one that differs in a single thing that the caption names; "
  "'all': above every such picture. The chance of one alone is 0.5."
)


class SheetFile(NamedTuple):
  """A sheet and the name of its file under the work directory."""

  name: str
  image: Image.Image


class PictureResults(NamedTuple):
  """What is measured of trained models: scores, sheets, blocks of the report, and curves as (title, SVG)."""

  scores: dict[str, float]
  sheets: list[SheetFile]
  blocks: list[report_blocks.Block]
  curves: list[tuple[str, str]]


def measure(experiment: Experiment, params: dict[str, Any]) -> PictureResults:
  """Measure the trained parts.

  Args:
    experiment: The finished run.
    params: The parameters of each part, as the bundle holds them.
  """
  if 'reranker' in params:
    return _measure_reranker(experiment, params)
  if 'dvae' not in params:
    return PictureResults({}, [], [], [])
  config, dataset = experiment.config, experiment.dataset
  split = examples.held_out_split(dataset)
  measured = _measured(experiment, params, split, config.evaluation.num_reconstructions)
  codes, decoded = measured.reconstructed
  scores = _scores(metrics.measure_reconstruction(measured)) | _scores(metrics.measure_codebook(measured))
  scores['codebook/num_tokens'] = float(codes.size)
  sheet = sheets.reconstruction_sheet(measured.pictures[:NUM_RECONSTRUCTIONS], decoded[:NUM_RECONSTRUCTIONS])
  results = PictureResults(scores, [SheetFile('reconstructions.png', sheet)], [], [])
  drawing_blocks: list[report_blocks.Block] = []
  if config.task == 'sequence':
    results = _joined(results, _measure_tokens(experiment, params, split))
  if measured.loaded.drawing_part:
    samples, groups = _measure_samples(experiment, params)
    results = _joined(results, samples)
    drawing_blocks = report_blocks.token_blocks(measured, groups)
  blocks = [
    report_blocks.reconstructions(measured.pictures, decoded),
    *drawing_blocks,
    report_blocks.codebook(measured.loaded.dvae, params['dvae'], codes, experiment.mesh),
  ]
  return results._replace(blocks=blocks)


def _joined(first: PictureResults, second: PictureResults) -> PictureResults:
  return PictureResults(
    first.scores | second.scores,
    first.sheets + second.sheets,
    first.blocks + second.blocks,
    first.curves + second.curves,
  )


def _measured(experiment: Experiment, params: dict[str, Any], split: str, most: int, **options: Any) -> Measured:
  """The model on at most `most` pictures of a split, with the settings of the experiment."""
  config = experiment.config
  settings = EvaluationSettings(model='', split=split, batch_size=config.evaluation.batch_size, seed=config.seed)
  count = min(most, len(experiment.dataset.open(split)))
  return Measured(settings, experiment.bundle(params), experiment.dataset, count, experiment.mesh, **options)


def _scores(figures: dict[str, Figure]) -> dict[str, float]:
  return {name: figure.value for name, figure in figures.items()}


def _measure_tokens(experiment: Experiment, params: dict[str, Any], split: str) -> PictureResults:
  """How well a sequence model predicts held-out image tokens; for images alone also by the length of context."""
  model = experiment.task('sequence').model
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
  return PictureResults(scores, [], [], [(title, curves.context_svg({'held out': (lengths, bits)}, title))])


def _measure_samples(
  experiment: Experiment, params: dict[str, Any]
) -> tuple[PictureResults, list[report_blocks.Group]]:
  """Images sampled for captions of each split, and how many show what their captions say if a judge can tell."""
  config, dataset = experiment.config, experiment.dataset
  sampler = make_sampler(config, experiment.tokenizer, experiment.mesh, config.sampling)
  if experiment.tokenizer is None:
    return _uncaptioned_samples(config, sampler, params)
  is_judged = config.data.source == 'captioned_shapes'
  scores, files, groups = {}, [], []
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
  samples = draw_sheet(config, None, sampler, params, [])
  codes, images = (grids.reshape(1, -1, *grids.shape[2:]) for grids in (samples.codes, samples.images))
  row = PromptSamples(samples.text[:1], codes, images)
  group = report_blocks.Group('Samples', _sampling_note(config), [''], row, None)
  return PictureResults({}, [SheetFile('samples.png', sheets.lay_out([], samples.images))], [], []), [group]


def _sheet_prompts(config: Config, captions: Sequence[str], is_judged: bool) -> list[str]:
  count = config.evaluation.sheet_prompts
  if is_judged:  # half with one object and half with two, if there are both
    return prompt_accuracy.choose(captions, -(-count // 2))[:count]
  return examples.spread(captions, count)


def _sampling_note(config: Config) -> str:
  settings = config.sampling
  kept = f'the {settings.top_k} likeliest tokens' if settings.top_k else 'all tokens'
  return f'Drawn at temperature {settings.temperature:g} from {kept}, seed {config.seed}; none was picked by hand.'


def _prompt_accuracy(experiment: Experiment, params: dict[str, Any], split: str) -> dict[str, float]:
  """The share of images that show what their captions say, one image for each chosen caption of a split."""
  config, captions = experiment.config, examples.captions(experiment.dataset, split)
  measured = _measured(
    experiment, params, split, len(captions), prompts=prompt_accuracy.choose(captions, config.evaluation.num_prompts),
    sample_seed=stream_seed(config.seed, split), sampling=config.sampling,
  )  # fmt: skip
  scores = {}
  for name, figure in metrics.measure_prompt_accuracy(measured).items():
    place = f'{split}{name.removeprefix("prompt_accuracy")}'
    scores[f'prompt_accuracy/{place}'] = figure.value
    scores[f'prompt_accuracy_stderr/{place}'] = figure.stderr
    scores[f'prompt_count/{place}'] = float(figure.count)
  return scores


def _measure_reranker(experiment: Experiment, params: dict[str, Any]) -> PictureResults:
  """How often the reranker finds the right picture, and how well it tells similar pictures apart."""
  config = experiment.config
  scores, found = reranker_scores.measure(config, experiment.dataset, experiment.bundle(params), experiment.mesh)
  files, blocks = [], []
  for split, (prompts, images, cosines) in found.items():
    right = judge.judge_grid(prompts, images) if config.data.source == 'captioned_shapes' else None
    number = int(scores[f'retrieval/{split}/num_captions'])
    note = (
      f'The best of {number} pictures of the {split} split for some of its captions: below each the cosine of the two.'
    )
    files.append(SheetFile(f'found_{split}.png', sheets.lay_out(prompts, images, right)))
    blocks.append((f'Found: {split}', gallery.samples(prompts, images, cosines, note, right)))
  return PictureResults(scores, files, blocks, [])


def write(experiment: Experiment, results: PictureResults) -> dict[str, float]:
  """Write the sheets, scores.json and report.html, print where they are, and return all scores."""
  config, space = experiment.config, experiment.space
  scores = results.scores | _last_losses(space.path) | space.seconds()
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
    blocks=results.blocks,
    notes=_notes(config),
  )
  print_scores(space.path, scores, [*(sheet.name for sheet in results.sheets), 'scores.json', 'report.html', 'model'])
  return scores


def _last_losses(workdir: Path) -> dict[str, float]:
  """The held-out metrics of each stage's last evaluation, as STAGE/NAME."""
  scores = {}
  for stage in stages.names():
    file = workdir / stage / METRICS
    for line in read_metrics(file) if file.exists() else []:
      scores |= {
        f'{stage}/{name[5:]}': value for name, value in line.items() if name.startswith('eval/') and value is not None
      }
  return scores


def _notes(config: Config) -> list[str]:
  is_judged = config.data.source == 'captioned_shapes'
  if config.task == 'reranker':
    return [
      'A reranker. Retrieval: how often the right one of num_captions captions is the best for a picture, or among the '
      'best 5, and the reverse. Captions that say the same in other words count as wrong.',
      *([CONTRAST_NOTE] if is_judged else []),
    ]
  notes = []
  if config.task == 'sequence':
    kinds = {'image': "a dVAE's codes", 'text_image': "captions and a dVAE's codes"}
    notes.append(f'A model of kind {config.model.kind} of {kinds[config.model.tokens]}.')
  notes.append(f'Scores are of the averaged parameters; PSNR is over {config.evaluation.num_reconstructions} pictures.')
  if is_judged and config.reads_captions:
    notes.append(
      'Prompt accuracy: one image is drawn for each prompt, and it counts if the judge, which sees nothing but the '
      'image, reads back every attribute that the prompt names.'
    )
  return notes
