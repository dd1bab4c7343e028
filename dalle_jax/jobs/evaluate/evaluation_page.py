"""The page of an evaluation: what was measured, as pictures where people would rather look."""

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

NUM_PROMPTS = 8  # whose images are shown


def blocks(measured: Measured) -> list[report_blocks.Block]:
  """Reconstructions, the codebook, samples by prompt and likelihoods, of those that the metrics have asked for.

  All processes call it together.
  """
  found = []
  if measured.has('reconstructed'):
    codes, pictures = measured.reconstructed
    found.append(report_blocks.reconstructions(measured.pictures, pictures))
    found.append(report_blocks.codebook(measured.loaded.dvae, measured.loaded.params['dvae'], codes, measured.mesh))
  if measured.has('samples'):
    found += _samples(measured)
  return found


def _samples(measured: Measured) -> list[report_blocks.Block]:
  """Images of the first prompts in the order of their likelihood, and the likelihood of their tokens."""
  loaded, samples = measured.loaded, measured.samples
  rows = (
    samples.groups[:NUM_PROMPTS] if len(samples.groups) else np.arange(min(NUM_PROMPTS, len(samples.prompts)))[:, None]
  )
  images, prompts = samples.all_images[rows], [samples.prompts[row[0]] for row in rows]
  right = None
  judged = measured.settings.source_of(measured.config) == 'captioned_shapes'
  if judged and measured.config.reads_captions:
    right = judge.judge_grid(prompts, images)
  sampling = measured.settings.sampling(measured.config.sampling, len(samples.prompts))
  note = (
    f'Drawn at temperature {sampling.temperature:g} with guidance {sampling.guidance_scale:g}, top_k {sampling.top_k}, '
    f'top_p {sampling.top_p:g}, seed {measured.settings.seed}; none was picked by hand.'
  )
  drawn = PromptSamples(encoded(loaded, prompts), samples.all_codes[rows], images)
  group = report_blocks.Group(f'Samples: {measured.settings.split}', note, prompts, drawn, right)
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
    path: of the HTML file.
    result: what the JSON file holds.
    figures: by name.
    curves: SVG by title.
    shown: what `blocks` returned.
  """
  summary: dict[str, float | None] = {}
  for name, figure in figures.items():
    summary[name] = figure.value
    if figure.stderr is not None:
      summary[f'{name}_stderr'] = figure.stderr
  notes = [
    f'{result["num_images"]} pictures of the split {result["split"]}, seed {result["seed"]}; model {result["model"]}, '
    f'data {result["data"]}. docs/evaluation.md says what each figure means.'
  ]
  config = {name: result[name] for name in ('sampling', 'settings', 'versions', 'seconds')}
  html.write_report(
    path, title='Evaluation', summary=summary, config=config, curves=list(curves.items()), notes=notes, blocks=shown
  )
