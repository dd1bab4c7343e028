import json
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parents[2] / 'tools' / 'plot_context.py'


def _run(*arguments):
  command = [sys.executable, str(SCRIPT), *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def _workdir(path, scores):
  path.mkdir(parents=True)
  (path / 'scores.json').write_text(json.dumps(scores))
  return path


def test_each_run_is_drawn_once_and_deterministically(tmp_path):
  runs = [
    _workdir(tmp_path / name, {'context/0': 9.0, 'context/1': 5.0, 'context/10': low, 'validation/bits_per_token': 4})
    for name, low in (('ngram', 5.0), ('lstm', 4.0))
  ]
  for out in ('a.svg', 'b.svg'):
    finished = _run(*(f'--run={run}' for run in runs), f'--out={tmp_path / out}')
    assert finished.returncode == 0, finished.stderr
  svg = (tmp_path / 'a.svg').read_text()
  assert svg.startswith('<svg') and 'xmlns="http://www.w3.org/2000/svg"' in svg
  assert all(f'>{word}<' in svg for word in ('ngram', 'lstm', 'tokens given', 'bits per token'))
  assert svg == (tmp_path / 'b.svg').read_text()


def test_invalid_runs_are_refused_by_name(tmp_path):
  bare = _workdir(tmp_path / 'bare', {'validation/bits_per_token': 4})
  one, other = (_workdir(tmp_path / name / 'run', {'context/0': 1.0}) for name in 'ab')
  for arguments, message in [
    ([], 'Give --run=WORKDIR'),
    ([f'--run={tmp_path / "nowhere"}'], 'scores.json cannot be read'),
    ([f'--run={bare}'], 'no scores by length of context'),
    ([f'--run={one}', f'--run={other}'], 'must differ in the last part'),
  ]:
    finished = _run(*arguments, f'--out={tmp_path / "no.svg"}')
    assert finished.returncode == 2 and message in finished.stderr
  assert not (tmp_path / 'no.svg').exists()
