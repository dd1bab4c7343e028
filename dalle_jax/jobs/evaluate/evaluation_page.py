"""The HTML page of an evaluation: its figures, and images of what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dalle_jax.evaluation import judge
from dalle_jax.evaluation.figures import Figure
from dalle_jax.jobs import report_blocks
from dalle_jax.jobs.evaluate.measured import Measured, encoded
from dalle_jax.jobs.sheet_samples import PromptSamples
from dalle_jax.reporting import html

NUM_PROMPTS = 8  # the page shows images of at most this many prompts


def blocks(measured: Measured) -> list[report_blocks.Block]:
  """The page's blocks: reconstructions, codebook, samples and likelihoods.

  Blocks that show data which no metric used are left out.

  All processes must call this function together.
  """
  shown = []
  if measured.has('reconstructed'):
    codes, reconstructions = measured.reconstructed
    shown.append(report_blocks.reconstructions(measured.pictures, reconstructions))
    shown.append(report_blocks.codebook(measured.loaded.dvae, measured.loaded.params['dvae'], codes, measured.mesh))
  if measured.has('samples'):
    shown += _samples(measured)
  return shown


def _samples(measured: Measured) -> list[report_blocks.Block]:
  """The blocks of the first prompts: their images, ordered by likelihood, and the likelihood of each token."""
  loaded, samples = measured.loaded, measured.samples
  rows = (
    samples.groups[:NUM_PROMPTS] if len(samples.groups) else np.arange(min(NUM_PROMPTS, len(samples.prompts)))[:, None]
  )
  images, prompts = samples.all_images[rows], [samples.prompts[row[0]] for row in rows]
  verdicts = None
  has_judge = measured.settings.source_of(measured.config) == 'captioned_shapes'
  if has_judge and measured.config.reads_captions:
    verdicts = judge.judge_grid(prompts, images)
  sampling = measured.settings.sampling(measured.config.sampling, len(samples.prompts))
  note = (
    f'Sampled at temperature {sampling.temperature:g}, guidance {sampling.guidance_scale:g}, top_k {sampling.top_k}, '
    f'top_p {sampling.top_p:g}, seed {measured.settings.seed}. No image was selected by hand.'
  )
  drawn = PromptSamples(encoded(loaded, prompts), samples.all_codes[rows], images)
  group = report_blocks.Group(f'Samples: {measured.settings.split}', note, prompts, drawn, verdicts)
  return report_blocks.token_blocks(measured, [group])


def write(
  path: Path,
  result: Mapping[str, Any],
  figures: Mapping[str, Figure],
  curves: Mapping[str, str],
  shown: list[report_blocks.Block],
) -> None:
  """Writes the page.

  Args:
    path: the HTML file.
    result: the contents of the JSON file.
    figures: the figures by name.
    curves: SVG drawings by title.
    shown: the blocks, from `blocks`.
  """
  summary: dict[str, float | None] = {}
  for name, figure in figures.items():
    summary[name] = figure.value
    if figure.stderr is not None:
      summary[f'{name}_stderr'] = figure.stderr
    if figure.interval is not None:
      summary[f'{name}_low'], summary[f'{name}_high'] = figure.interval
  notes = [
    f'{result["num_images"]} images of the split {result["split"]}, seed {result["seed"]}; model {result["model"]}, '
    f'data {result["data"]}. docs/evaluation.md explains each figure.',
    result['seen']['note'],
  ]
  config = {name: result[name] for name in ('sampling', 'settings', 'versions', 'seconds')}
  html.write_report(
    path, title='Evaluation', summary=summary, config=config, curves=list(curves.items()), notes=notes, blocks=shown
  )
