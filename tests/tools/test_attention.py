import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'tools' / 'attention.py'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--model=nowhere', '--prompt=x'], 'no model directory at nowhere'),
    (['--model=nowhere', '--prompt=x', '--layers=first'], "--layers is 'first'; give numbers from 1"),
    (['--model=nowhere', '--prompt=x', '--heads='], "give numbers from 1, separated by commas, or 'mean'"),
    (['--model=nowhere'], '--prompt is empty'),
  ],
)
def test_a_mistake_gives_one_line_on_stderr(arguments, message):
  command = [sys.executable, str(SCRIPT), *arguments]
  finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
  assert finished.returncode == 2
  assert message in finished.stderr and len(finished.stderr.strip().splitlines()) == 1
