"""Prompt accuracy on captioned shapes for grids of sampling settings, and for the best of several candidates.

The captions are from splits that share no caption with training by construction; see `data.shapes.partition`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dalle_jax import bundle
from dalle_jax.data import fingerprints, registry
from dalle_jax.evaluation import candidates, judge, prompt_accuracy
from dalle_jax.evaluation.figures import share
from dalle_jax.hosts import say
from dalle_jax.jobs import examples
from dalle_jax.jobs.draw import ranking
from dalle_jax.jobs.draw.model import Model, load
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.training.progress import Progress

SPLITS = ('validation', 'held_out')
_ENDS = ('_low', '_high')  # suffixes of the ends of intervals
GRID = ('guidance_scale', 'guidance_ramp', 'temperature', 'top_k', 'top_p')


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Captions of one split, with one object or with two."""

  split: str
  texts: list[str]

  @property
  def groups(self) -> dict[str, np.ndarray]:
    """Masks bool [P] of the captions with one object and with two, by 'SPLIT/KIND'."""
    counts = np.array([prompt_accuracy.num_objects(text) for text in self.texts])
    return {f'{self.split}/{name}': counts == count for count, name in prompt_accuracy.KINDS.items()}


def prepare(path: str, data_dir: str, num_prompts: int) -> tuple[Model, list[Prompts]]:
  """Load the model, and choose captions for it.

  Args:
    path: a model directory.
    data_dir: the directory of the data set; '' for the directory that the model was trained with.
    num_prompts: captions for each split and each number of objects.

  Returns:
    The model, and the captions of each of `SPLITS`.

  Raises:
    ValueError: the model was not trained on captioned shapes, or `num_prompts` is below 1.
  """
  model_path = Path(path).absolute()
  info = bundle.check(model_path, needs=('dvae',))
  config = bundle.read_config(model_path)
  if config.data.source != 'captioned_shapes' or not config.reads_captions:
    raise ValueError(
      f'{path} (--model) was not trained on captions of captioned_shapes (config.data.source), the only data set whose '
      'images a program can judge.'
    )
  if num_prompts < 1:
    raise ValueError(f'--num_prompts is {num_prompts}; it must be at least 1.')
  directory = Path(data_dir or config.data.data_dir or model_path.parent / 'data').absolute()
  dataset = registry.prepare(config.data, directory)
  if dataset.account:
    say(f'data: {config.data.source}\n{dataset.account}')
  if not fingerprints.same(info.get('data', ''), dataset.fingerprint):
    say(
      f'note: {path} was trained on other data than captioned_shapes makes now, so it may have seen some of these '
      'captions in training.'
    )
  prompts = [Prompts(name, prompt_accuracy.choose(examples.captions(dataset, name), num_prompts)) for name in SPLITS]
  return load(model_path), prompts


def grid(
  model: Model, prompts: Sequence[Prompts], values: dict[str, Sequence[Any]], seed: int, batch_size: int
) -> list[dict[str, Any]]:
  """Measure the prompt accuracy of every combination of sampling settings, with one image for each prompt.

  The i-th prompt gets image number i, so that each prompt has its own noise.

  Args:
    model: a model of captioned shapes.
    prompts: the captions of each split.
    values: the values to try, by the name of the setting (one of `GRID`).
    seed: the seed for sampling.
    batch_size: the largest number of images to generate at once.

  Returns:
    One row for each combination: its settings, and the accuracies SPLIT/KIND with the ends of their Wilson intervals of
    95%, SPLIT/KIND_low and SPLIT/KIND_high.
  """
  combinations = [dict(zip(values, choices, strict=True)) for choices in itertools.product(*values.values())]
  rows = []
  with Progress('settings', len(combinations), 'combination', interval_s=1) as progress:
    for number, combination in enumerate(combinations):
      settings, figures = DrawSettings(num_images=1, seed=seed, batch_size=batch_size, truncate=True, **combination), {}
      for split_prompts in prompts:
        right = judge.judge(split_prompts.texts, _one_image_each(model, split_prompts.texts, settings))
        for name, members in split_prompts.groups.items():
          accuracy = share(right[members])
          assert accuracy.interval is not None
          figures[name] = accuracy.value
          figures[f'{name}_low'], figures[f'{name}_high'] = accuracy.interval
      rows.append({**combination, **figures})
      progress.update(number + 1)
  return rows


def _one_image_each(model: Model, texts: Sequence[str], settings: DrawSettings) -> np.ndarray:
  """One image for each prompt, uint8 [P, H, W, 3], each with its own noise."""
  return model.draw(texts, settings, index=np.arange(len(texts))[:, None]).images[:, 0]


def choosing(
  model: Model,
  prompts: Sequence[Prompts],
  most: int,
  ranks: Sequence[str],
  settings: DrawSettings,
  reranker: ranking.Scorer | None,
) -> dict[str, Any]:
  """Measure the prompt accuracy of the best of 1, 2, 4, ... candidates by each ranking.

  Args:
    model: a model of captioned shapes.
    prompts: the captions of each split.
    most: the number of candidates to generate for each prompt.
    ranks: the rankings, from `draw_settings.RANKS`.
    settings: the settings for sampling. Their candidates and rank are not used.
    reranker: the scorer for the rank 'reranker'.

  Returns:
    'counts', the numbers of candidates, and 'figures': ranking -> SPLIT/KIND -> accuracy for each count, with the ends
    of intervals as SPLIT/KIND_low and SPLIT/KIND_high (see `candidates.curve`). The ranking 'any' is the share of
    prompts with at least one correct candidate, an upper bound for every ranking.
  """
  counts = candidates.powers_of_two(most)
  figures: dict[str, dict[str, list[float]]] = {}
  settings = dataclasses.replace(settings, num_images=most, candidates=most, rank='', truncate=True)
  for rank in ranks:
    ranking.check(dataclasses.replace(settings, rank=rank), model.config, model.part, reranker, prompts[0].texts)
  for split_prompts in prompts:
    texts = split_prompts.texts
    drawn = _with_progress(f'{split_prompts.split}: {most} candidates', model, texts, settings)
    right = judge.judge_grid(texts, drawn.images)
    scores_by_rank = {rank: model.scores(rank, texts, drawn, reranker) for rank in ranks}
    scores_by_rank['any'] = right.astype(np.float32)
    for rank, scores in scores_by_rank.items():
      ranking.check_scores(scores)
      for name, members in split_prompts.groups.items():
        means, low, high = candidates.curve(scores[members], right[members], counts)
        figures.setdefault(rank, {})[name] = means.tolist()
        figures[rank] |= {f'{name}_low': low.tolist(), f'{name}_high': high.tolist()}
  return {'counts': counts, 'figures': figures}


def possible_ranks(model: Model, reranker: ranking.Scorer | None) -> list[str]:
  """The rankings that are possible with the model, and with the reranker if there is one."""
  ranks = ['reranker'] if reranker else []
  ranks.append('likelihood')
  return ranks + (['caption_likelihood'] if model.config.prior.caption_drop and model.part == 'prior' else [])


def _with_progress(name: str, model: Model, texts: Sequence[str], settings: DrawSettings) -> Any:
  with Progress(name, 1, 'token') as progress:
    return model.draw(texts, settings, progress=progress.update_of)


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The rows of the grid as an aligned table, with accuracies and their intervals in percent."""
  names = [name for name in rows[0] if not name.endswith(_ENDS)]

  def cell(row: dict[str, Any], name: str) -> str:
    if f'{name}_low' not in row:
      return f'{row[name]:g}'
    low, high = row[f'{name}_low'], row[f'{name}_high']
    return f'{100 * row[name]:.1f} ({100 * low:.1f} to {100 * high:.1f})'

  return aligned([names, *([cell(row, name) for name in names] for row in rows)])


def choosing_table(accuracies: dict[str, Any]) -> str:
  """The result of `choosing` as a table: a line for each ranking and group, a column for each count, in percent."""
  lines = [['ranked by', 'prompts', *map(str, accuracies['counts'])]]
  for rank, figures in accuracies['figures'].items():
    for name, values in figures.items():
      if not name.endswith(_ENDS):
        lines.append([rank, name, *(f'{100 * value:.1f}' for value in values)])
  return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
  """Rows of cells as text, with aligned columns."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
  )


def drawing(accuracies: dict[str, Any], draw: Callable[..., str]) -> str:
  """The result of `choosing` as curves in SVG, averaged over the kinds of prompts of each split.

  Args:
    accuracies: the result of `choosing`.
    draw: makes the SVG, such as `curves.curve_svg`.
  """
  counts, series = np.array(accuracies['counts']), {}
  for rank, figures in accuracies['figures'].items():
    for split in SPLITS:
      curves = [curve for name, curve in figures.items() if name.startswith(split) and not name.endswith(_ENDS)]
      label = f'{"at least one is correct" if rank == "any" else rank}, {split}'
      series[label] = (counts, 100 * np.mean(curves, axis=0))
  title = 'Prompt accuracy by the number of candidates'
  return draw(series, title, 'percent', x_label='candidates', log_x=True)
