"""The figures of one command on eight devices and on one; see `compare_evaluations.py`."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
  path = f'{ROOT}{os.pathsep}{ROOT / "tests" / "helpers"}'
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags, 'PYTHONPATH': path}
  script = pathlib.Path(__file__).with_name('compare_evaluations.py')
  command = [sys.executable, str(script), str(tmp_path_factory.mktemp('evaluations'))]
  finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
  assert finished.returncode == 0, finished.stderr
  return json.loads(finished.stdout.splitlines()[-1])


def test_tokens_are_the_same(report):
  assert report['wrong_tokens'] == 0
  assert report['num_codes'] > 4


def test_figures_are_the_same_up_to_rounding(report):
  one, all_devices = report['one'], report['all']
  assert (one['devices'], all_devices['devices']) == ('1 x cpu', '8 x cpu')
  assert one['figures'].keys() == all_devices['figures'].keys()
  for name, figure in one['figures'].items():
    for part, value in figure.items():
      found = all_devices['figures'][name][part]
      assert found == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)), (name, part)
