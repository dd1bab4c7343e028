"""How far back models of text look: bits per token by the number of tokens given, of several runs in one drawing.

    python tools/plot_context.py --run=runs/ngram --run=runs/lstm --run=runs/transformer --out=context.svg

Reads what each run measured (scores.json) and writes an SVG file. A model of text that looks n tokens back gains
nothing from more. Of images (config.model.tokens=image) each token is predicted from all those before it: along one
curve the tokens differ, and at one place they are the same for all models.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from dalle_jax import flags as doors

_RUN = flags.DEFINE_multi_string('run', [], 'Work directory of a run of config.task=sequence; repeat the flag.')
_OUT = flags.DEFINE_string('out', 'context.svg', 'The file to write.')
PREFIX = 'context/'


def read(run: Path) -> tuple[np.ndarray, np.ndarray]:
  """Tokens given and bits per token, by rising number.

  Raises:
    ValueError: the run has no such scores.
  """
  try:
    scores = json.loads((run / 'scores.json').read_text())
    found = sorted((int(name[len(PREFIX) :]), value) for name, value in scores.items() if name.startswith(PREFIX))
  except (OSError, ValueError, AttributeError) as error:
    raise ValueError(f'--run={run}: its scores.json cannot be read: {error}') from None
  if not found:
    raise ValueError(f'--run={run} has no scores by length of context; config.task=sequence measures them.')
  return np.array([length for length, _ in found]), np.array([value for _, value in found], np.float64)


def main(argv: list[str]) -> int:
  del argv
  if not _RUN.value:
    raise ValueError('Give --run=WORKDIR, once for each model.')
  from dalle_jax.files import write_whole
  from dalle_jax.reporting import curves

  series = {Path(run).name: read(Path(run)) for run in _RUN.value}
  if len(series) < len(_RUN.value):
    raise ValueError(f'The runs must differ in the last part of their paths, which names them; given {_RUN.value}.')
  write_whole(Path(_OUT.value), curves.context_svg(series).encode())
  print(_OUT.value)
  return 0


if __name__ == '__main__':
  doors.run(main)
