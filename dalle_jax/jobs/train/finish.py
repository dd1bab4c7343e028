"""The end of the main job: scores, sheets of pictures, and the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from dalle_jax.bundle import Bundle
from dalle_jax.config import Config
from dalle_jax.data.registry import Dataset
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.evaluation import prompt_accuracy, reconstruction
from dalle_jax.factory import make_dvae, make_stream_model
from dalle_jax.jobs import examples, report_blocks
from dalle_jax.jobs.sheet_samples import PromptSamples, draw_sheet
from dalle_jax.jobs.train import image_token_run, reranker_scores
from dalle_jax.jobs.train.sheet_hooks import NUM_RECONSTRUCTIONS
from dalle_jax.jobs.train.workspace import Workspace, print_scores
from dalle_jax.reporting import gallery as gallery_page
from dalle_jax.reporting import html, sheets
from dalle_jax.reporting.run_curves import run_curves
from dalle_jax.reporting.sheets import lay_out
from dalle_jax.sampling.sampler import Sampler, encode_prompts, make_sampler
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.metrics_log import FILE_NAME as METRICS
from dalle_jax.training.metrics_log import read_metrics
from dalle_jax.training.progress import Progress

CONTRAST_NOTE = (
  "Contrast: how often a caption's own picture scores above one that differs in a single thing that the caption names; "
  "'all': above every such picture. The chance of one alone is 0.5."
)


class SheetFile(NamedTuple):
  """A sheet and the file it goes into, under the work directory."""

  name: str
  image: Image.Image


class Results(NamedTuple):
  """What is found of trained models."""

  scores: dict[str, float]
  pictures: list[SheetFile]
  blocks: list[report_blocks.Block]
  curves: list[tuple[str, str]]  # title and SVG


def measure(
  config: Config, dataset: Dataset, tokenizer: Tokenizer | None, params: dict[str, Any], mesh: Mesh
) -> Results:
  """Scores, sheets, what the page shows of pictures and tokens, and curves of the trained models.

  Args:
    config: of the experiment.
    dataset: its data.
    tokenizer: of captions, where the models have read some.
    params: by part, as the bundle holds them.
    mesh: of the devices.
  """
  if config.task == 'reranker':
    return _retrieval(config, dataset, tokenizer, params, mesh)
  split = examples.held_out_split(dataset)
  originals = examples.first_images(config, dataset, split, config.evaluation.num_reconstructions)
  dvae = make_dvae(config.dvae)
  codes, decoded = reconstruction.reconstruct(dvae, params['dvae'], originals, mesh, config.evaluation.batch_size)
  scores = reconstruction.scores(originals, decoded, codes, config.dvae.image_vocab_size)
  sheet = sheets.reconstruction_sheet(originals[:NUM_RECONSTRUCTIONS], decoded[:NUM_RECONSTRUCTIONS])
  pictures = [SheetFile('reconstructions.png', sheet)]
  blocks = [
    report_blocks.reconstructions(originals, decoded),
    report_blocks.codebook(dvae, params['dvae'], codes, mesh),
  ]
  curves = []
  if config.task == 'sequence':
    figures, curves = image_token_run.measure(config, dataset, tokenizer, params, mesh)
    scores |= figures
  if config.task != 'dvae':
    sampler = make_sampler(config, tokenizer, mesh, config.sampling)
    draw = _captioned_samples if tokenizer else _samples
    figures, sampled, groups = draw(config, dataset, tokenizer, sampler, params)
    scores, pictures = scores | figures, pictures + sampled
    held_out = _held_out(config, dataset, tokenizer, split, codes, originals, mesh)
    model, part = make_stream_model(config, tokenizer.vocab_size if tokenizer else 0)
    blocks[1:1] = report_blocks.blocks(model, params[part], tokenizer, groups, held_out, mesh)
  return Results(scores, pictures, blocks, curves)


def _retrieval(config: Config, dataset: Dataset, tokenizer: Tokenizer, params: dict[str, Any], mesh: Mesh) -> Results:
  """What the reranker finds, and how well it tells pictures apart."""
  scores, found = reranker_scores.measure(config, dataset, Bundle(config, tokenizer, params, {}), mesh)
  pictures, blocks = [], []
  for split, (prompts, images, cosines) in found.items():
    right = _judge_sheet(prompts, images) if config.data.source == 'captioned_shapes' else None
    number = int(scores[f'retrieval/{split}/num_captions'])
    words = (
      f'The best of {number} pictures of the {split} split for some of its captions: below each the cosine of the two.'
    )
    pictures.append(SheetFile(f'found_{split}.png', lay_out(prompts, images, right)))
    blocks.append((f'Found: {split}', gallery_page.samples(prompts, images, cosines, words, right)))
  return Results(scores, pictures, blocks, [])


def _held_out(
  config: Config, dataset: Dataset, tokenizer: Tokenizer | None, split: str, codes: np.ndarray, images: np.ndarray,
  mesh: Mesh,
) -> report_blocks.HeldOut:  # fmt: skip
  """The first pictures of a split with their captions."""
  count = min(report_blocks.NUM_READINGS, len(images))
  text = np.zeros((count, 0), np.int32)
  if tokenizer:
    ((_, batch),) = examples.batches(config, tokenizer, dataset.open(split), count, count, mesh)
    text = batch['text'][:count]
  return report_blocks.HeldOut(f'{split} picture', text, codes[:count], images[:count])


def _samples(
  config: Config, dataset: Dataset, tokenizer: None, sampler: Sampler, params: dict[str, Any]
) -> tuple[dict[str, float], list[SheetFile], list[report_blocks.Group]]:
  """Images drawn without a caption."""
  del dataset
  drawn = draw_sheet(config, tokenizer, sampler, params, [])
  codes, images = (found.reshape(1, -1, *found.shape[2:]) for found in (drawn.codes, drawn.images))
  group = report_blocks.Group(
    'Samples', _sampling_words(config), [''], PromptSamples(drawn.text[:1], codes, images), None
  )
  return {}, [SheetFile('samples.png', lay_out([], drawn.images))], [group]


def _captioned_samples(
  config: Config, dataset: Dataset, tokenizer: Tokenizer, sampler: Sampler, params: dict[str, Any]
) -> tuple[dict[str, float], list[SheetFile], list[report_blocks.Group]]:
  """Images for captions of each split, and how many show what their prompts say where that can be judged."""
  scores, pictures, groups = {}, [], []
  judged = config.data.source == 'captioned_shapes'
  for split, name in examples.sheet_splits(dataset).items():
    prompts = _sheet_prompts(config, examples.captions(dataset, split), judged)
    drawn = draw_sheet(config, tokenizer, sampler, params, prompts)
    right = _judge_sheet(prompts, drawn.images) if judged else None
    pictures.append(SheetFile(f'samples_{split}.png', lay_out(prompts, drawn.images, right)))
    groups.append(report_blocks.Group(f'Samples: {name}', _sampling_words(config), prompts, drawn, right))
  if judged:
    for split in ('validation', 'held_out'):
      scores |= _prompt_accuracy(config, dataset, tokenizer, sampler, params, split)
  return scores, pictures, groups


def _sheet_prompts(config: Config, captions: Sequence[str], judged: bool) -> list[str]:
  count = config.evaluation.sheet_prompts
  if judged:  # half with one object, half with two, where there are both
    chosen = prompt_accuracy.choose(captions, -(-count // 2))
    return chosen[:count]
  return examples.spread(captions, count)


def _sampling_words(config: Config) -> str:
  settings = config.sampling
  kept = f'the {settings.top_k} likeliest tokens' if settings.top_k else 'all tokens'
  return f'Drawn at temperature {settings.temperature:g} from {kept}, seed {config.seed}; none was picked by hand.'


def _judge_sheet(prompts: list[str], images: np.ndarray) -> np.ndarray:
  from dalle_jax.evaluation import judge

  repeated = [prompt for prompt in prompts for _ in range(images.shape[1])]
  return judge.judge(repeated, images.reshape(-1, *images.shape[2:])).reshape(images.shape[:2])


def _prompt_accuracy(
  config: Config, dataset: Dataset, tokenizer: Tokenizer, sampler: Sampler, params: dict[str, Any], split: str
) -> dict[str, float]:
  from dalle_jax.evaluation import judge

  prompts = prompt_accuracy.choose(examples.captions(dataset, split), config.evaluation.num_prompts)
  text = encode_prompts(tokenizer, prompts, config.tokenizer.text_length, truncate=True)
  with Progress(f'drawing {split}', len(prompts), 'token', enabled=jax.process_index() == 0) as progress:
    images = sampler(params, text, stream_seed(config.seed, split), progress.update_of)
  return prompt_accuracy.scores(prompts, judge.judge(prompts, images), split)


def write(config: Config, space: Workspace, results: Results) -> dict[str, float]:
  """Writes sheets, scores.json and report.html, prints where they are, and returns all scores."""
  scores = results.scores | _last_losses(space.path) | space.seconds()
  if jax.process_index() != 0:
    return scores
  for picture in results.pictures:
    sheets.save_png(picture.image, space.path / picture.name, None)
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
  written = [*(picture.name for picture in results.pictures), 'scores.json', 'report.html', 'model']
  print_scores(space.path, scores, written)
  return scores


def _last_losses(workdir: Path) -> dict[str, float]:
  """Held-out figures of each stage's last evaluation, as STAGE/NAME."""
  scores = {}
  for stage in ('dvae', 'prior', 'joint', 'sequence', 'reranker'):
    file = workdir / stage / METRICS
    for line in read_metrics(file) if file.exists() else []:
      scores |= {
        f'{stage}/{name[5:]}': value for name, value in line.items() if name.startswith('eval/') and value is not None
      }
  return scores


def _notes(config: Config) -> list[str]:
  notes = []
  if config.task == 'sequence':
    kinds = {'image': "a dVAE's codes", 'text_image': "captions and a dVAE's codes"}
    notes.append(f'A model of kind {config.model.kind} of {kinds[config.model.tokens]}.')
  if config.task == 'reranker':
    return [
      'A reranker. Retrieval: how often the right one of num_captions captions is the best for a picture, or among the '
      'best 5, and the reverse. Captions that say the same in other words count as wrong.',
      *([CONTRAST_NOTE] if config.data.source == 'captioned_shapes' else []),
    ]
  notes.append(f'Scores are of the averaged parameters; PSNR is over {config.evaluation.num_reconstructions} pictures.')
  if config.data.source == 'captioned_shapes' and config.reads_captions:
    notes.append(
      'Prompt accuracy: one image is drawn for each prompt, and it counts if the judge, which sees nothing but the '
      'image, reads back every attribute that the prompt names.'
    )
  return notes
