"""Campaigns of damaged inputs and of killed runs, to be continued at any time.

    python tools/soak.py inputs --out=runs/soak --count=1000
    python tools/soak.py inputs --out=runs/soak --count=4000 --kinds=pictures
    python tools/soak.py kills --out=runs/soak --count=300
    python tools/soak.py table --out=runs/soak

`inputs` damages pictures, prompts, model directories, checkpoints, compressed files, torch files and JSON files of work
directories, uses each as the commands do, and judges the result. `kills` kills the tiny main job at random moments and
file operations until it has killed it --count times. `table` prints the results so far.

A trial ends in one of five ways: a clean error (the commands exit with status 2 and a message), the right result, a
wrong result without an error, a traceback, or a hang (also: far too much memory). For formats without checksums, what
Pillow decodes counts as right. The exit status is 1 if any trial ended in one of the last three ways.

Trials depend on --seed and their number alone. A later start with the same --out goes on where an earlier one stopped.
docs/reliability.md has the results.
"""

import functools
import sys
from pathlib import Path

import numpy as np
from absl import flags

from dalle_jax import flags as doors

ACTIONS = ('inputs', 'kills', 'table')
_OUT = flags.DEFINE_string('out', None, 'Directory for the undamaged files and the results.', required=True)
_COUNT = flags.DEFINE_integer('count', 100, 'Inputs of each kind, or kills in all.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the trials.', lower_bound=0)
_KINDS = flags.DEFINE_list('kinds', [], '`inputs`: kinds of input, separated by commas. Default: all.')


def main(argv: list[str], action: str) -> int:
  del argv
  from soaking.results import Results

  out = Path(_OUT.value).absolute()
  if action == 'table' and not (out / 'results.jsonl').exists():
    raise ValueError(f'--out={out} has no results; run `inputs` or `kills` first.')
  out.mkdir(parents=True, exist_ok=True)
  results = Results(out / 'results.jsonl')
  if action == 'inputs':
    _inputs(out, results)
  elif action == 'kills':
    _kills(out, results)
  print(results.table())
  failures = results.failures()
  for row in failures:
    print(f'{row["kind"]} {row["trial"]} (seed {row["seed"]}): {row["outcome"]}: {row["detail"]}')
  return 1 if failures else 0


def _inputs(out: Path, results: 'Results') -> None:  # noqa: F821
  from soaking import base
  from soaking.subjects import SUBJECTS
  from soaking.worker import Worker

  from dalle_jax.training.progress import Progress

  unknown = set(_KINDS.value) - set(SUBJECTS)
  if unknown:
    raise ValueError(f'--kinds names {sorted(unknown)[0]!r}; allowed are {", ".join(SUBJECTS)}.')
  base.prepare(out / 'base')
  for kind in _KINDS.value or SUBJECTS:
    trials = results.missing(kind, _SEED.value, _COUNT.value)
    worker = Worker(SUBJECTS[kind], out / 'base', _SEED.value)
    with Progress(kind, _COUNT.value, 'input') as progress:
      for trial in trials:
        results.add(kind, _SEED.value, trial, worker.run(trial))
        progress.update(trial + 1)
    worker.close()


def _kills(out: Path, results: 'Results') -> None:  # noqa: F821
  from soaking import base
  from soaking.killing import Killing

  base.prepare(out / 'base')
  done = sum(row['tries'] for row in results.rows if row['kind'] == 'kills' and row['seed'] == _SEED.value)
  if done >= _COUNT.value:
    return
  killing = Killing(out / 'base', out / 'kills')
  cycles = (cycle for cycle in results.missing('kills', _SEED.value, _COUNT.value))
  while done < _COUNT.value:
    cycle = next(cycles)
    kills, outcome = killing.cycle(np.random.default_rng([_SEED.value, cycle]), f'cycle_{cycle}')
    results.add('kills', _SEED.value, cycle, outcome, tries=kills)
    done += kills
    print(f'kills: {done} of {_COUNT.value}; cycle {cycle}: {kills} kills, {outcome.name} {outcome.detail}', flush=True)


if __name__ == '__main__':
  doors.run(functools.partial(main, action=doors.take_subject(sys.argv, ACTIONS)))
