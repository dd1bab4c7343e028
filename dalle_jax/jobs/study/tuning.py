"""How sampling changes the prompt accuracy of captioned shapes: grids of settings, and the best of candidates."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dalle_jax import bundle
from dalle_jax.data import registry
from dalle_jax.evaluation import candidates, judge, prompt_accuracy
from dalle_jax.jobs import examples
from dalle_jax.jobs.draw import ranking
from dalle_jax.jobs.draw.model import Model, load
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.training.progress import Progress

SPLITS = ('validation', 'held_out')
GRID = ('guidance_scale', 'guidance_ramp', 'temperature', 'top_k', 'top_p')


@dataclasses.dataclass(frozen=True)
class Prompts:
  """The captions of a split, as many with one object as with two."""

  split: str
  texts: list[str]

  @property
  def groups(self) -> dict[str, np.ndarray]:
    """Which of them, bool [P], by what they name."""
    counts = np.array([prompt_accuracy.num_objects(text) for text in self.texts])
    return {f'{self.split}/{name}': counts == count for count, name in prompt_accuracy.KINDS.items()}


def prepare(path: str, data_dir: str, num_prompts: int) -> tuple[Model, list[Prompts]]:
  """The model, and `num_prompts` captions of each split and number of objects.

  Raises:
    ValueError: the model is not one of captioned shapes.
  """
  model_path = Path(path).absolute()
  bundle.check(model_path, needs=('dvae',))
  config = bundle.read_config(model_path)
  if config.data.source != 'captioned_shapes' or not config.reads_captions:
    raise ValueError(
      f'{path} (--model) is no model of captions of captioned_shapes, whose images alone can be judged exactly.'
    )
  if num_prompts < 1:
    raise ValueError(f'--num_prompts is {num_prompts}; it must be at least 1.')
  directory = Path(data_dir or config.data.data_dir or model_path.parent / 'data').absolute()
  dataset = registry.prepare(config.data, directory)
  found = [Prompts(name, prompt_accuracy.choose(examples.captions(dataset, name), num_prompts)) for name in SPLITS]
  return load(model_path), found


def grid(
  model: Model, prompts: Sequence[Prompts], values: dict[str, Sequence[Any]], seed: int, batch_size: int
) -> list[dict[str, Any]]:
  """Accuracy for every combination of settings: one image for each prompt, number i for the i-th.

  Args:
    model: of captioned shapes.
    prompts: of each split.
    values: what each setting, of `GRID`, takes.
    seed: of the noise.
    batch_size: images at a time, at most.

  Returns:
    For each combination the settings, and accuracies by SPLIT/KIND with their standard errors.
  """
  combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
  rows = []
  with Progress('settings', len(combinations), 'combination', interval_s=1) as progress:
    for number, combination in enumerate(combinations):
      settings, figures = DrawSettings(num_images=1, seed=seed, batch_size=batch_size, truncate=True, **combination), {}
      for part in prompts:
        right = judge.judge(part.texts, _one_each(model, part.texts, settings))
        for name, members in part.groups.items():
          figures[name] = float(right[members].mean())
          figures[f'{name}_stderr'] = float(np.sqrt(figures[name] * (1 - figures[name]) / members.sum()))
      rows.append({**combination, **figures})
      progress.update(number + 1)
  return rows


def _one_each(model: Model, texts: Sequence[str], settings: DrawSettings) -> np.ndarray:
  """One image of each prompt, uint8 [P, H, W, 3], with noise of its own."""
  return model.draw(texts, settings, index=np.arange(len(texts))[:, None]).images[:, 0]


def choosing(
  model: Model,
  prompts: Sequence[Prompts],
  most: int,
  ranks: Sequence[str],
  settings: DrawSettings,
  reranker: ranking.Scorer | None,
) -> dict[str, Any]:
  """Accuracy of the best of 1, 2, 4, ... candidates by each ranking.

  Args:
    model: of captioned shapes.
    prompts: of each split.
    most: candidates of each prompt.
    ranks: of `settings.RANKS`.
    settings: of sampling; its candidates and rank are not read.
    reranker: for the rank of that name.

  Returns:
    'counts', and RANK -> SPLIT/KIND -> [accuracies], and the same with _stderr; 'any' is the chance that at least one
    candidate is right, which no choice can beat.
  """
  counts, figures = candidates.powers_of_two(most), {}
  wanted = dataclasses.replace(settings, num_images=most, candidates=most, rank='', truncate=True)
  for rank in ranks:
    ranking.check(dataclasses.replace(wanted, rank=rank), model.config, model.part, reranker, prompts[0].texts)
  for part in prompts:
    drawn = _with_progress(f'{part.split}: {most} candidates', model, part.texts, wanted)
    right = judge.judge_grid(part.texts, drawn.images)
    scores = {rank: model.scores(rank, part.texts, drawn, reranker) for rank in ranks} | {
      'any': right.astype(np.float32)
    }
    for rank, score in scores.items():
      ranking.check_scores(score)
      for name, members in part.groups.items():
        means, errors = candidates.curve(score[members], right[members], counts)
        figures.setdefault(rank, {})[name] = means.tolist()
        figures[rank][f'{name}_stderr'] = errors.tolist()
  return {'counts': counts, 'figures': figures}


def possible_ranks(model: Model, reranker: ranking.Scorer | None) -> list[str]:
  """The rankings that a model, with a reranker or without, allows."""
  found = ['reranker'] if reranker else []
  found.append('likelihood')
  return found + (['caption_likelihood'] if model.config.prior.caption_drop and model.part == 'prior' else [])


def _with_progress(name: str, model: Model, texts: Sequence[str], settings: DrawSettings) -> Any:
  with Progress(name, 1, 'token') as progress:
    return model.draw(texts, settings, progress=progress.update_of)


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Rows of the grid as text, aligned, standard errors behind a plus-minus sign."""
  names = [name for name in rows[0] if not name.endswith('_stderr')]

  def cell(row: dict[str, Any], name: str) -> str:
    error = row.get(f'{name}_stderr')
    return f'{row[name]:g}' if error is None else f'{100 * row[name]:.1f} +- {100 * error:.1f}'

  return aligned([names, *([cell(row, name) for name in names] for row in rows)])


def choosing_table(found: dict[str, Any]) -> str:
  """One line for each ranking and group, one column for each number of candidates; percent."""
  lines = [['ranked by', 'prompts', *map(str, found['counts'])]]
  for rank, figures in found['figures'].items():
    for name, values in figures.items():
      if not name.endswith('_stderr'):
        lines.append([rank, name, *(f'{100 * value:.1f}' for value in values)])
  return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
  """Columns as wide as their widest cell."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
  )


def drawing(found: dict[str, Any], draw: Callable[..., str]) -> str:
  """The curves of all rankings, averaged over the kinds of prompts of each split, as SVG."""
  counts, series = np.array(found['counts']), {}
  for rank, figures in found['figures'].items():
    for split in SPLITS:
      values = [each for name, each in figures.items() if name.startswith(split) and not name.endswith('_stderr')]
      label = f'{"at least one is right" if rank == "any" else rank}, {split}'
      series[label] = (counts, 100 * np.mean(values, axis=0))
  title = 'Prompt accuracy by the number of candidates'
  return draw(series, title, 'percent', x_label='candidates', log_x=True)
