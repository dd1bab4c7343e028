"""The notebooks are stored in the expected form, and run from the first cell to the last."""

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
from numbered_pictures import save_numbered

ROOT = pathlib.Path(__file__).parents[2]
PATHS = sorted((ROOT / 'colab').glob('*.ipynb'))
MOST_CELLS = {'quickstart': 12, 'from_ngrams_to_dalle': 26, 'train_on_your_pictures': 12}


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
  return request.param


@pytest.fixture
def notebook(path):
  return read(path.stem)


def read(name):
  return nbformat.read(ROOT / 'colab' / f'{name}.ipynb', as_version=4)


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def find_cell(notebook, text):
  (source,) = [cell.source for cell in code_cells(notebook) if text in cell.source]
  return source


def test_it_is_valid_and_stored_without_outputs(notebook):
  nbformat.validate(notebook)
  for cell in code_cells(notebook):
    assert cell.outputs == []
    assert cell.execution_count is None


def test_cells_are_few_and_short(path, notebook):
  assert len(notebook.cells) <= MOST_CELLS[path.stem]
  assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 15


def test_it_begins_with_a_badge_that_opens_this_file(path, notebook):
  assert notebook.cells[0].cell_type == 'markdown'
  badge = notebook.cells[0].source.splitlines()[0]
  assert badge.startswith('[![Open in Colab]')
  assert badge.endswith(f'/blob/main/{path.relative_to(ROOT).as_posix()})')


@pytest.mark.parametrize(
  ('devices', 'nvidia_smi_status', 'environment', 'expected'),
  [
    (['/dev/accel0'], None, {}, '[tpu]'),
    (['/dev/vfio/0'], None, {}, '[tpu]'),
    ([], None, {'COLAB_TPU_ADDR': '10.0.0.2:8470'}, '[tpu]'),
    ([], 0, {}, '[cuda]'),
    ([], 9, {}, ''),  # nvidia-smi is installed, but there is no GPU
    ([], None, {}, ''),
  ],
)
def test_the_install_cell_chooses_the_build_for_the_accelerator(
  notebook, monkeypatch, devices, nvidia_smi_status, environment, expected
):
  commands = install(notebook, monkeypatch, devices, nvidia_smi_status, environment, installed=False)
  (command,) = commands
  assert ' -m pip install ' in command
  assert f'"dalle_jax{expected} @ git+https://' in command


def test_the_install_cell_does_nothing_if_the_package_is_installed(notebook, monkeypatch):
  assert install(notebook, monkeypatch, [], None, {}, installed=True) == []


def install(notebook, monkeypatch, devices, nvidia_smi_status, environment, installed):
  """Runs the install cell on a simulated machine and returns the shell commands that it would run."""
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
  exec(compile(source, 'install', 'exec'), names)
  return commands


def execute(notebook, monkeypatch, tmp_path, config='configs/quickstart.py:tiny'):
  """Runs a notebook outside the checkout, as on Colab, where only the package is installed."""
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('DALLE_JAX_CONFIG', config)
  monkeypatch.setenv('DALLE_JAX_WORKDIR', str(tmp_path / 'a run'))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'cache'))
  client = nbclient.NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(tmp_path)}})
  client.execute()


def count_pictures(notebook):
  return sum('image/png' in output.get('data', {}) for cell in code_cells(notebook) for output in cell.outputs)


def printed_by(cell):
  return ''.join(output.text for output in cell.outputs if output.output_type == 'stream')


@pytest.mark.slow
def test_the_quick_start_notebook_runs(monkeypatch, tmp_path):
  notebook = read('quickstart')
  execute(notebook, monkeypatch, tmp_path)
  assert count_pictures(notebook) == 4  # reconstructions, samples of two splits, the prompts' contact sheet
  assert 'reconstruction/psnr' in printed_by(code_cells(notebook)[-1])
  assert len(list((tmp_path / 'a run' / 'samples').glob('*.png'))) == 2 * 4 + 1
  assert {path.name for path in tmp_path.iterdir()} == {'a run', 'cache'}


@pytest.mark.slow
def test_the_ngrams_to_dalle_notebook_runs(monkeypatch, tmp_path):
  notebook = read('from_ngrams_to_dalle')
  monkeypatch.setenv('DALLE_JAX_STEPS', '20')
  execute(notebook, monkeypatch, tmp_path)
  assert count_pictures(notebook) == 5  # relaxed samples, contexts, a law, a tree, the prompt's contact sheet
  printed = [printed_by(cell) for cell in code_cells(notebook)]
  (words,) = [text for text in printed if 'bits per word' in text]
  assert 'entropy 1.65 bits, Huffman code 1.70' in words
  (table,) = [text for text in printed if 'xz -9e' in text]
  for line in table.splitlines()[1:5]:
    kind, entropy, coded, huffman, *_ = line.split()
    assert kind in ('ngram', 'neural_ngram', 'lstm', 'transformer')
    assert float(entropy) == pytest.approx(float(coded), rel=2e-3)
    assert float(entropy) < float(huffman) < float(entropy) + 1
  assert (tmp_path / 'a run' / 'attention.html').stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize('has_captions', [True, False])
def test_the_notebook_of_own_pictures_runs(monkeypatch, tmp_path, has_captions):
  pictures = save_numbered(tmp_path / 'my pictures', 30)
  if not has_captions:
    for file in pictures.glob('*.txt'):
      file.unlink()
  monkeypatch.setenv('DALLE_JAX_PICTURES', str(pictures))
  monkeypatch.setenv('DALLE_JAX_MINUTES', '0.5')
  notebook = read('train_on_your_pictures')
  execute(notebook, monkeypatch, tmp_path, 'configs/mine.py:tiny')
  printed = [printed_by(cell) for cell in code_cells(notebook)]
  (training,) = [text for text in printed if 'chosen for 0.5 minutes' in text]
  task = 'all: 30 of 30' if has_captions else 'sequence: 0 of 30'
  assert f'task = {task} pictures have captions' in training
  # Reconstructions, samples (with captions: of two splits), and the contact sheet.
  assert count_pictures(notebook) == (4 if has_captions else 3)
  assert 'reconstruction/psnr' in printed[-1]
  assert {path.name for path in tmp_path.iterdir()} == {'a run', 'cache', 'my pictures'}
  assert (tmp_path / 'a run' / 'model.zip').stat().st_size > 10_000
