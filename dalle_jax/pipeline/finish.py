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
from dalle_jax.factory import make_dvae
from dalle_jax.pipeline import examples, image_tokens, retrieval
from dalle_jax.pipeline.sheets import NUM_RECONSTRUCTIONS, draw_sheet, lay_out, make_sampler
from dalle_jax.pipeline.workspace import Workspace
from dalle_jax.reporting import html, sheets
from dalle_jax.sampling.generate import Sampler, encode_prompts
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.metrics import FILE_NAME as METRICS
from dalle_jax.training.metrics import read_metrics
from dalle_jax.training.progress import Progress

Curves = list[tuple[str, str]]  # title and SVG
CONTRAST_NOTE = (
  "Contrast: how often a caption's own picture scores above one that differs in a single thing that the caption names; "
  "'all': above every such picture. The chance of one alone is 0.5."
)


class Picture(NamedTuple):
  """A sheet and the file it goes into, under the work directory."""

  name: str
  title: str
  caption: str
  image: Image.Image


def measure(
  config: Config, dataset: Dataset, tokenizer: Tokenizer | None, params: dict[str, Any], mesh: Mesh
) -> tuple[dict[str, float], list[Picture], Curves]:
  """Scores, sheets and curves of the trained models.

  Args:
    config: of the experiment.
    dataset: its data.
    tokenizer: of captions, where the models have read some.
    params: by part, as the bundle holds them.
    mesh: of the devices.
  """
  if config.task == 'reranker':
    return *_retrieval(config, dataset, tokenizer, params, mesh), []
  scores, pictures = _reconstructions(config, dataset, params, mesh)
  drawn: Curves = []
  if config.task == 'sequence':
    figures, drawn = image_tokens.measure(config, dataset, tokenizer, params, mesh)
    scores |= figures
  if config.task != 'dvae':
    sampler = make_sampler(config, tokenizer, mesh, config.sampling)
    draw = _captioned_samples if tokenizer else _samples
    figures, sampled = draw(config, dataset, tokenizer, sampler, params)
    scores, pictures = scores | figures, pictures + sampled
  return scores, pictures, drawn


def _retrieval(
  config: Config, dataset: Dataset, tokenizer: Tokenizer, params: dict[str, Any], mesh: Mesh
) -> tuple[dict[str, float], list[Picture]]:
  """What the reranker finds, and how well it tells pictures apart."""
  scores, found = retrieval.measure(config, dataset, Bundle(config, tokenizer, params, {}), mesh)
  pictures = []
  for split, (prompts, images) in found.items():
    right = _judge_sheet(prompts, images) if config.data.source == 'captioned_shapes' else None
    number = int(scores[f'retrieval/{split}/num_captions'])
    words = f'The best of {number} pictures of the {split} split for some of its captions, the best first.'
    pictures.append(Picture(f'found_{split}.png', f'Found: {split}', words, lay_out(prompts, images, right)))
  return scores, pictures


def _samples(
  config: Config, dataset: Dataset, tokenizer: None, sampler: Sampler, params: dict[str, Any]
) -> tuple[dict[str, float], list[Picture]]:
  """Images drawn without a caption."""
  del dataset
  sheet = lay_out([], draw_sheet(config, tokenizer, sampler, params, []))
  return {}, [Picture('samples.png', 'Samples', _sampling_words(config), sheet)]


def _captioned_samples(
  config: Config, dataset: Dataset, tokenizer: Tokenizer, sampler: Sampler, params: dict[str, Any]
) -> tuple[dict[str, float], list[Picture]]:
  """Images for captions of each split, and how many show what their prompts say where that can be judged."""
  scores, pictures = {}, []
  judged = config.data.source == 'captioned_shapes'
  for split, name in examples.sheet_splits(dataset).items():
    prompts = _sheet_prompts(config, examples.captions(dataset, split), judged)
    images = draw_sheet(config, tokenizer, sampler, params, prompts)
    right = _judge_sheet(prompts, images) if judged else None
    sheet = lay_out(prompts, images, right)
    pictures.append(Picture(f'samples_{split}.png', f'Samples: {name}', _sampling_words(config), sheet))
  if judged:
    for split in ('validation', 'held_out'):
      scores |= _prompt_accuracy(config, dataset, tokenizer, sampler, params, split)
  return scores, pictures


def _reconstructions(
  config: Config, dataset: Dataset, params: dict[str, Any], mesh: Mesh
) -> tuple[dict[str, float], list[Picture]]:
  split = 'validation' if 'validation' in dataset.splits else 'train'
  originals = examples.first_images(config, dataset, split, config.evaluation.num_reconstructions)
  codes, pictures = reconstruction.reconstruct(
    make_dvae(config.dvae), params['dvae'], originals, mesh, config.evaluation.batch_size
  )
  sheet = sheets.reconstruction_sheet(originals[:NUM_RECONSTRUCTIONS], pictures[:NUM_RECONSTRUCTIONS])
  words = f'Pictures of the {split} split above what the dVAE makes of them through its {config.image_length} codes.'
  scores = reconstruction.scores(originals, pictures, codes, config.dvae.image_vocab_size)
  return scores, [Picture('reconstructions.png', 'Reconstructions', words, sheet)]


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
  with Progress(f'drawing {split}', len(prompts), 'image', enabled=jax.process_index() == 0) as progress:
    images = sampler(params, text, stream_seed(config.seed, split), progress.update_of)
  return prompt_accuracy.scores(prompts, judge.judge(prompts, images), split)


def write(
  config: Config, space: Workspace, scores: dict[str, float], pictures: list[Picture], curves: Curves
) -> dict[str, float]:
  """Writes sheets, scores.json and report.html, prints where they are, and returns all scores."""
  scores = scores | _last_losses(space.path) | space.seconds()
  if jax.process_index() != 0:
    return scores
  for picture in pictures:
    sheets.save_png(picture.image, space.path / picture.name, None)
  space.write('scores.json', scores)
  report = space.path / 'report.html'
  html.write_report(
    report,
    title=f'dalle_jax: {space.path.name}',
    summary=scores,
    config=config.to_dict(),
    curves=[*curves, *html.run_curves(space.path)],
    pictures=[(p.title, p.caption, p.image) for p in pictures],
    notes=_notes(config),
  )
  html.print_scores(space.path, scores, [*(p.name for p in pictures), 'scores.json', 'report.html', 'model'])
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
  if config.data.source == 'captioned_shapes':
    notes.append(
      'Prompt accuracy: one image is drawn for each prompt, and it counts if the judge, which sees nothing but the '
      'image, reads back every attribute that the prompt names.'
    )
  return notes
