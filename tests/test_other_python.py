"""Checkpoints and bundles written under one version of Python and JAX are read under another.

DALLE_JAX_OTHER_PYTHON names the interpreter of a second environment, which has this package with another version of
JAX. `.ci/run` sets it if it finds a second Python.
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
    pytest.skip('needs a second Python with this package; set DALLE_JAX_OTHER_PYTHON to its path')
  return {'this': sys.executable, 'other': other}


@pytest.fixture(scope='module')
def written(pythons, tmp_path_factory):
  """The directory that each Python wrote, by name."""
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
  """What a Python reads from a copy of the directory. It trains on in the copy."""
  return json.loads(run(python, 'read', shutil.copytree(directory, copy)).splitlines()[-1])


@pytest.mark.parametrize('writer', ['this', 'other'])
def test_checkpoints_and_bundles_of_one_version_are_read_under_the_other(pythons, written, tmp_path, writer):
  reader = {'this': 'other', 'other': 'this'}[writer]
  expected = read(pythons[writer], written[writer], tmp_path / 'writer')
  result = read(pythons[reader], written[writer], tmp_path / 'reader')
  assert expected.pop('versions') != result.pop('versions')
  # The versions of XLA may round differently.
  for leaf, same in zip(result.pop('trained'), expected.pop('trained'), strict=True):
    assert leaf == pytest.approx(same, rel=1e-5)
  assert result == expected
