"""A run that goes on on other meshes; see `resume_on_meshes.py`."""

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
  script = pathlib.Path(__file__).with_name('resume_on_meshes.py')
  command = [sys.executable, str(script), str(tmp_path_factory.mktemp('meshes'))]
  finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
  assert finished.returncode == 0, finished.stderr
  return json.loads(finished.stdout.splitlines()[-1])


def test_it_learns_what_one_device_does_from_the_same_data(report):
  assert report['error'] < 1e-5


def test_losses_are_the_same_within_rounding(report):
  # Every third step ends a run and so an interval of two.
  same = [step for step in report['expected'] if report['losses'].get(step) is not None and int(step) % 6 != 4]
  assert len(same) >= 3
  for step in same:
    assert report['losses'][step] == pytest.approx(report['expected'][step], rel=1e-5)


def test_each_mesh_splits_the_parameters_its_own_way(report):
  assert [share for share, _ in report['shares']] == [16, 8, 16, 8]
