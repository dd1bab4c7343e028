import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'measured.py'


SHARE = {'value': 1.0, 'stderr': None, 'count': 9, 'interval': [0.75, 1.0]}
USE = {'value': 0.5, 'stderr': None, 'count': 9}


def _run(*arguments):
  return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True)


def test_the_scores_of_runs_and_their_median_are_recorded_and_printed(tmp_path):
  for number, psnr in enumerate((46.9, 45.0, 46.8)):
    (tmp_path / f'run{number}').mkdir()
    (tmp_path / f'run{number}' / 'scores.json').write_text(json.dumps({'psnr': psnr, 'other': 1}))
  runs = ','.join(str(tmp_path / f'run{number}') for number in range(3))
  out = tmp_path / 'a.json'
  done = _run(f'--runs={runs}', '--scores=psnr', f'--out={out}', '--command=c', '--hardware=h')
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == '| median | 46.8 |'
  evaluation = tmp_path / 'evaluation.json'
  evaluation.write_text(
    json.dumps({'figures': {'kid': {'value': 0.25, 'stderr': 0.125, 'count': 9}, 'share': SHARE, 'use': USE}})
  )
  done = _run(f'--runs={evaluation}', '--labels=all', '--scores=kid,share,use', f'--out={out}', '--table=kid')
  assert done.returncode == 0, done.stderr
  tables = json.loads(out.read_text())['tables']
  assert tables['runs']['command'] == 'c' and tables['runs']['hardware'] == 'h'
  rows = [['all', [0.25, 0.125], [1.0, 0.75, 1.0], 0.5]]
  assert tables['kid']['columns'] == ['run', 'kid', 'share', 'use'] and tables['kid']['rows'] == rows
  assert tables['kid']['command'] == ''
  assert done.stdout.splitlines()[-1] == '| all | 0.25 +- 0.12 | 1 (0.75 to 1) | 0.5 |'
  assert [row[0] for row in tables['runs']['rows']] == ['run0', 'run1', 'run2', 'median']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--runs=nowhere', '--scores=a'], 'nowhere cannot be read: No such file'),
    (['--scores=a'], '--runs has 0 runs'),
    (['--runs={run}', '--scores=b'], 'has no score b (--scores); it has a'),
    (['--runs={run}', '--scores=a,c'], 'has no finite number for c (--scores)'),
    (['--runs={run}', '--scores=a,d,e,f'], 'has no finite number for d, e, f (--scores)'),
  ],
)
def test_a_mistake_gives_one_line(tmp_path, arguments, message):
  (tmp_path / 'scores.json').write_text('{"a": 1, "c": null, "d": Infinity, "e": [], "f": [1, "x"]}')
  done = _run(*(argument.format(run=tmp_path) for argument in arguments), f'--out={tmp_path / "a.json"}')
  assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1
