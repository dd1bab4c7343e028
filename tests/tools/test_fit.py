"""tools/fit.py in a separate process: mistakes, arithmetic for GPUs, and compilation if libtpu is installed."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="libtpu is not installed: pip install 'jax[tpu]'"
)


def fit(*arguments: str) -> subprocess.CompletedProcess:
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, 'tools/fit.py', *arguments]
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--config=configs/dalle.py:12b,tiny', '--topology=v9:3x3'), '--topology=v9:3x3 is unknown. Known names:\n'),
    (('--config=configs/dalle.py:12b,tiny',), '--topology=NAME'),
    (
      ('--config=configs/dalle.py:12b,tiny', '--topology=h100:8', '--search', '--task=sample'),
      'leave --task=sample out',
    ),
    (('--config=configs/dalle.py:12b,tiny', '--topology=h100:8', '--search', '--batch_sizes=x'), '--batch_sizes is x'),
  ],
)
def test_mistakes_are_refused_before_compilation(arguments, message):
  done = fit(*arguments)
  assert done.returncode == 2
  assert done.stderr.startswith('error: ')
  assert message in done.stderr


def test_without_gpus_it_uses_arithmetic(tmp_path):
  path = tmp_path / 'deep' / 'fit.json'
  done = fit('--config=configs/language.py:transformer', '--topology=h100:8', f'--json={path}')
  assert done.returncode == 0, done.stderr
  assert 'arithmetic' in done.stdout
  found = json.loads(path.read_text())
  assert found['fits'] is True
  assert found['chips'] == 8
  assert found['total_bytes_per_chip'] == sum(found['bytes_per_chip'].values())


def test_a_program_that_does_not_fit_exits_with_status_3():
  done = fit('--config=configs/language.py:transformer', '--topology=t4:8', '--config.model.embed_dim=8192')
  assert done.returncode == 3, done.stderr
  assert 'DOES NOT FIT' in done.stdout


@needs_libtpu
@pytest.mark.slow
def test_a_reduced_12b_compiles_for_a_pod(tmp_path):
  """Compiles two layers of the full width for 64 chips that are not present."""
  path = tmp_path / 'fit.json'
  done = fit(
    '--config=configs/dalle.py:12b', '--topology=v5p:4x4x4', '--config.prior.num_layers=2', '--config.mesh.data=4',
    '--config.mesh.fsdp=16', '--config.prior.attention_pattern=row', '--config.prior.last_attention_pattern=',
    '--config.prior_training.batch_size=64', '--config.dvae.hidden_size=16',
    '--config.prior.remat=attention', f'--json={path}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(path.read_text())
  assert found['full_rematerialisations'] == found['warnings'] == []
  assert found['parameters'] == 575_320_320
  moved_bytes = dict.fromkeys(('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute'), 0)
  for collective in found['collectives']:
    moved_bytes[collective['kind']] += collective['bytes']
  assert moved_bytes['all-to-all'] == 0
  assert moved_bytes['collective-permute'] < 0.05 * moved_bytes['all-gather']
  # Both layers' bfloat16 kernels are gathered for the forward and the backward pass. The bound leaves room for the
  # embedding tables and output matrices.
  kernels = 2 * 12 * 3968**2
  assert 2 * 2 * kernels * 15 / 16 < moved_bytes['all-gather'] < 2 * 2 * kernels * 15 / 16 + 4 * 3 * 24_576 * 3968
  # Parameters and the two moments are float32, and each chip holds a sixteenth of them.
  assert found['bytes_per_chip']['parameters'] == pytest.approx(4 * found['parameters'] / 16, rel=0.02)
  assert found['bytes_per_chip']['optimizer'] == pytest.approx(8 * found['parameters'] / 16, rel=0.02)
  assert 0.1 < found['model_flops_utilisation'] < 1
  assert 0.01 < found['step_seconds'] < 10


@needs_libtpu
@pytest.mark.slow
def test_sampling_compiles_for_a_pod(tmp_path):
  path = tmp_path / 'fit.json'
  done = fit('--config=configs/dalle.py:12b,tiny', '--topology=v5e-8', '--task=sample', f'--json={path}')
  assert done.returncode == 0, done.stderr
  found = json.loads(path.read_text())
  assert found['step_seconds'] > 0
  assert found['bytes_per_chip']['parameters'] > 0


@needs_libtpu
@pytest.mark.slow
def test_an_unknown_topology_shape_is_refused_with_the_known_ones():
  done = fit('--config=configs/dalle.py:12b,tiny', '--topology=v5p:3x3x3')
  assert done.returncode == 2
  assert 'Known names:' in done.stderr
