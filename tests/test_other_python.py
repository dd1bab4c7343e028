"""Checkpoints and bundles that one Python and JAX wrote are read by another.

DALLE_JAX_OTHER_PYTHON is the interpreter of an environment in which the package is installed with other versions.
`.ci/run` sets it where it finds a second Python.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from processes import ENVIRONMENT, ROOT

SCRIPT = ROOT / 'tests' / 'helpers' / 'other_python.py'


@pytest.fixture(scope='module')
def pythons():
  other = os.environ.get('DALLE_JAX_OTHER_PYTHON')
  if not other:
    pytest.skip('no second Python; set DALLE_JAX_OTHER_PYTHON to one that has this package')
  return {'this': sys.executable, 'other': other}


@pytest.fixture(scope='module')
def written(pythons, tmp_path_factory):
  """A directory written by each of them."""
  paths = {name: tmp_path_factory.mktemp(name) for name in pythons}
  for name, path in paths.items():
    run(pythons[name], 'write', path)
  return paths


def run(python, command, directory):
  finished = subprocess.run(
    [python, str(SCRIPT), command, str(directory)], env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
    check=False,
  )  # fmt: skip
  assert finished.returncode == 0, finished.stderr
  return finished.stdout


def read(python, directory, copy):
  """What a Python reads from a copy of the directory, in which it trains on."""
  return json.loads(run(python, 'read', shutil.copytree(directory, copy)).splitlines()[-1])


@pytest.mark.parametrize('writer', ['this', 'other'])
def test_checkpoints_and_bundles_of_one_version_are_read_by_the_other(pythons, written, tmp_path, writer):
  reader = {'this': 'other', 'other': 'this'}[writer]
  expected = read(pythons[writer], written[writer], tmp_path / 'writer')
  result = read(pythons[reader], written[writer], tmp_path / 'reader')
  assert expected.pop('versions') != result.pop('versions')
  # Two versions of XLA round differently.
  for leaf, same in zip(result.pop('trained'), expected.pop('trained'), strict=True):
    assert leaf == pytest.approx(same, rel=1e-5)
  assert result == expected
