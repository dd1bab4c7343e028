import os
import re
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / 'tools' / 'judge_errors.py'


def test_the_tool_counts_both_kinds_of_errors():
  finished = subprocess.run(
    [sys.executable, TOOL, '--count=20'], capture_output=True, text=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}
  )
  assert finished.returncode == 0, finished.stderr
  assert re.search(r'^all +1,000 +0$', finished.stdout, re.M)
  assert re.search(r'^polygon with 8 corners +25 +0$', finished.stdout, re.M)
  assert 'true scenes of validation, rendered: 0 of 20 rejected (0.00%)' in finished.stdout
