"""The notebook is what it should be on the shelf, and runs from its first cell to its last."""

import fnmatch
import glob
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import nbclient
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = pathlib.Path(__file__).parents[2]
PATH = ROOT / 'colab' / 'quickstart.ipynb'


@pytest.fixture
def notebook():
  return nbformat.read(PATH, as_version=4)


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def find_cell(notebook, text):
  (source,) = [cell.source for cell in code_cells(notebook) if text in cell.source]
  return source


def test_is_valid_and_stored_without_outputs(notebook):
  nbformat.validate(notebook)
  for cell in code_cells(notebook):
    assert cell.outputs == []
    assert cell.execution_count is None


def test_has_few_and_short_cells(notebook):
  assert len(notebook.cells) <= 12
  assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 15


def test_begins_with_a_badge_that_opens_this_file(notebook):
  assert notebook.cells[0].cell_type == 'markdown'
  badge = notebook.cells[0].source.splitlines()[0]
  assert badge.startswith('[![Open in Colab]')
  assert badge.endswith(f'/blob/main/{PATH.relative_to(ROOT).as_posix()})')


@pytest.mark.parametrize(
  ('devices', 'nvidia_smi_status', 'environment', 'expected'),
  [
    (['/dev/accel0'], None, {}, '[tpu]'),
    (['/dev/vfio/0'], None, {}, '[tpu]'),
    ([], None, {'COLAB_TPU_ADDR': '10.0.0.2:8470'}, '[tpu]'),
    ([], 0, {}, '[cuda]'),
    ([], 9, {}, ''),  # the program is there, a device is not
    ([], None, {}, ''),
  ],
)
def test_installs_the_build_for_the_accelerator(
  notebook, monkeypatch, devices, nvidia_smi_status, environment, expected
):
  commands = install(notebook, monkeypatch, devices, nvidia_smi_status, environment, installed=False)
  (command,) = commands
  assert ' -m pip install ' in command
  assert f'"dalle_jax{expected} @ git+https://' in command


def test_installs_nothing_where_the_package_is(notebook, monkeypatch):
  assert install(notebook, monkeypatch, [], None, {}, installed=True) == []


def install(notebook, monkeypatch, devices, nvidia_smi_status, environment, installed):
  """Runs the install cell with a made-up machine and returns the shell commands that it asks for."""
  commands = []

  class Shell:
    def system(self, command):
      commands.append(command.format(**names))

  monkeypatch.delenv('COLAB_TPU_ADDR', raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(glob, 'glob', lambda pattern: fnmatch.filter(devices, pattern))
  monkeypatch.setattr(shutil, 'which', lambda name: None if nvidia_smi_status is None else f'/usr/bin/{name}')
  monkeypatch.setattr(subprocess, 'call', lambda command: nvidia_smi_status)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object() if installed else None)
  names = {'os': os, 'PYTHON': sys.executable, 'get_ipython': Shell}
  source = TransformerManager().transform_cell(find_cell(notebook, 'pip install'))
  exec(compile(source, str(PATH), 'exec'), names)
  return commands


def test_runs_from_start_to_end(notebook, monkeypatch, tmp_path):
  # Away from the checkout, as on Colab, where there is only the installed package.
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('DALLE_JAX_CONFIG', 'configs/quickstart.py:tiny')
  monkeypatch.setenv('DALLE_JAX_WORKDIR', str(tmp_path / 'a run'))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'cache'))
  client = nbclient.NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(tmp_path)}})
  client.execute()
  pictures = sum('image/png' in output.get('data', {}) for cell in code_cells(notebook) for output in cell.outputs)
  assert pictures == 4  # reconstructions, samples of two splits, the prompts' contact sheet
  printed = ''.join(output.text for output in code_cells(notebook)[-1].outputs if output.output_type == 'stream')
  assert 'reconstruction/psnr' in printed
  assert len(list((tmp_path / 'a run' / 'samples').glob('*.png'))) == 2 * 4 + 1
  assert {path.name for path in tmp_path.iterdir()} == {'a run', 'cache'}
