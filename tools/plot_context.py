"""Plots how much context sequence models use: bits per token against the number of preceding tokens.

    python tools/plot_context.py --run=runs/ngram --run=runs/lstm --run=runs/transformer --out=context.svg

Reads the scores of each run (scores.json) and writes an SVG file. A model of text that uses only n tokens of context
gains nothing from more. A model of image tokens (config.model.tokens=image) predicts each token from all preceding
ones, so different points of its curve are different tokens. At each point, the tokens are the same for all models.
"""

from pathlib import Path

import numpy as np
from absl import flags

from dalle_jax import flags as doors
from dalle_jax.files import read_json_object

_RUN = flags.DEFINE_multi_string(
  'run', [], 'Work directory of a run with config.task=sequence; repeat the flag for more runs.'
)
_OUT = flags.DEFINE_string('out', 'context.svg', 'SVG file to write.')
_OVERWRITE = doors.define_overwrite('the file of --out')
PREFIX, FILE = 'context/', 'scores.json'


def read(run: Path) -> tuple[np.ndarray, np.ndarray]:
  """Reads the context lengths (ascending) and the bits per token at each.

  Raises:
    ValueError: the run has no such scores.
  """
  advice = f'Run the training command of --run={run} again to write it.'
  scores = {name: value for name, value in read_json_object(run / FILE, advice).items() if name.startswith(PREFIX)}
  if not all(name[len(PREFIX) :].isdecimal() and type(value) in (int, float) for name, value in scores.items()):
    raise ValueError(f'{run / FILE} is damaged: its {PREFIX}LENGTH must be numbers. {advice}')
  points = sorted((int(name[len(PREFIX) :]), value) for name, value in scores.items())
  if not points:
    raise ValueError(f'--run={run} has no scores by length of context; runs with config.task=sequence have them.')
  return np.array([length for length, _ in points]), np.array([value for _, value in points], np.float64)


def main(argv: list[str]) -> int:
  del argv
  if not _RUN.value:
    raise ValueError('Give --run=WORKDIR once for each run.')
  from dalle_jax.files import check_out, write_whole
  from dalle_jax.reporting import curves

  check_out(Path(_OUT.value), _OVERWRITE.value)
  series = {Path(run).name: read(Path(run)) for run in _RUN.value}
  if len(series) < len(_RUN.value):
    raise ValueError(
      f'The runs must differ in the last part of their paths, which labels the curves; given {_RUN.value}.'
    )
  write_whole(Path(_OUT.value), curves.context_svg(series).encode())
  print(_OUT.value)
  return 0


if __name__ == '__main__':
  doors.run(main)
