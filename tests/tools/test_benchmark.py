import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'tools' / 'benchmark.py'


def _run(*arguments):
  command = [sys.executable, str(SCRIPT), *arguments]
  return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(('subject', 'what'), [('dvae', 'examples per second'), ('draw', 'images per second')])
def test_it_times_the_small_variant(subject, what):
  finished = _run(subject, '--config=configs/quickstart.py:tiny', '--rounds=2', '--steps=1')
  assert finished.returncode == 0, finished.stderr
  figures = dict(line.rsplit('  ', 1) for line in finished.stdout.splitlines() if line.startswith((what, 'parameters')))
  assert all(float(value.replace(',', '')) > 0 for value in figures.values()) and len(figures) == 2


def test_what_to_time_is_asked_for():
  finished = _run('speed', '--config=configs/quickstart.py')
  assert finished.returncode != 0
  assert "one of dvae, prior, draw; given 'speed'" in finished.stderr


def test_a_batch_that_cannot_be_is_refused():
  finished = _run('prior', '--config=configs/quickstart.py', '--config.prior_training.batch_size=0')
  assert finished.returncode == 2
  assert 'config.prior_training.batch_size is 0' in finished.stderr
