import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'tools' / 'benchmark.py'
# A model that compiles in a few seconds.
SMALL = ('--config=configs/quickstart.py:tiny', '--config.dvae.num_groups=2', '--config.dvae.patch_size=2',
         '--config.dvae_training.optimizer=adamw', '--config.prior.num_layers=1')  # fmt: skip
# Prints the GFLOPs of dense and of sparse attention for one pattern.
ONE_PATTERN = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import benchmark
benchmark.flags.FLAGS(['benchmark', '--text_length=4', '--num_heads=2', '--rounds=1', '--steps=1'])
print(*(benchmark.measure_attention('row', 48, dense)['GFLOP'] for dense in (True, False)))
"""


def _run(*arguments):
  command = [sys.executable, str(SCRIPT), *arguments]
  return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
  ('subject', 'throughput'),
  [pytest.param('dvae', 'examples per second', marks=pytest.mark.slow), ('draw', 'images per second')],
)
def test_it_prints_parameters_and_throughput(subject, throughput):
  finished = _run(subject, *SMALL, '--rounds=2', '--steps=1')
  assert finished.returncode == 0, finished.stderr
  figures = dict(
    line.rsplit('  ', 1) for line in finished.stdout.splitlines() if line.startswith((throughput, 'parameters'))
  )
  assert all(float(value.replace(',', '')) > 0 for value in figures.values()) and len(figures) == 2


def test_it_prints_the_share_of_checksums_in_the_background_of_a_save():
  finished = _run('checkpoint', *SMALL, '--stage=dvae', '--rounds=1')
  assert finished.returncode == 0, finished.stderr
  figures = dict(line.split('  ', 1) for line in finished.stdout.splitlines() if '  ' in line)
  seconds, share = figures['of which checksums'].removesuffix(' %').split(' s, ')
  assert 0 < float(seconds) < float(figures['median time in the background'].removesuffix(' s'))
  assert 0 < float(share) < 100


def test_it_compares_readers_of_pictures(tmp_path):
  finished = _run('data', '--rounds=1', '--num_pictures=64', '--image_size=32')
  assert finished.returncode == 0, finished.stderr
  rows = [line for line in finished.stdout.splitlines() if line.startswith(('dalle_jax, ', 'Pillow'))]
  assert [row.split()[1] for row in rows] == ['area', 'box', 'draft', 'decoding']
  assert all(float(word.replace(',', '')) > 0 for row in rows for word in row[26:].split())
  refused = _run('data', f'--path={tmp_path}')
  assert refused.returncode == 2 and 'has no pictures' in refused.stderr


def test_an_unknown_subject_is_refused_with_the_allowed_ones():
  finished = _run('speed', '--config=configs/quickstart.py')
  assert finished.returncode != 0
  assert "one of dvae, prior, draw, checkpoint, attention, data, epoch; given 'speed'" in finished.stderr


def test_an_invalid_batch_size_is_refused():
  finished = _run('prior', '--config=configs/quickstart.py', '--config.prior_training.batch_size=0')
  assert finished.returncode == 2
  assert 'config.prior_training.batch_size is 0' in finished.stderr


def test_it_compares_dense_and_sparse_attention():
  finished = _run('attention', '--grids=11,12', '--text_length=4', '--head_dim=8', '--rounds=1', '--steps=1')
  assert finished.returncode == 0, finished.stderr
  _, head, *rows = (line.split() for line in finished.stdout.splitlines())
  assert [row[:3] for row in rows[:4]] == [['11', '125', name] for name in ('row', 'column', 'conv', 'mix')]
  assert len(rows) == 8
  assert all(float(value) >= 0 for row in rows for value in row[3:])
  assert all(float(row[3]) > 0 and float(row[6]) > 0 for row in rows)  # milliseconds
  assert 'times' in head


def test_flops_of_attention_count_every_iteration_of_loops():
  finished = subprocess.run([sys.executable, '-c', ONE_PATTERN], capture_output=True, text=True, check=False)
  assert finished.returncode == 0, finished.stderr
  dense, sparse = map(float, finished.stdout.split())
  length, units = 4 + 48**2, 2 * 64 / 1e9
  assert dense == pytest.approx(2 * 6 * length**2 * units, rel=1e-6)  # forward 2 products, backward 4
  # A window has 32 + 48 keys, of which a query attends to 49. The backward pass of the two loops recomputes the scores.
  assert 2 * 6 * length * 49 * units < sparse < 2 * 8 * length * 1.2 * (80 + 4) * units


def test_invalid_grids_and_a_missing_configuration_are_refused():
  finished = _run('attention', '--grids=4,16')
  assert finished.returncode == 2 and '--grids is 4,16' in finished.stderr
  finished = _run('prior')
  assert finished.returncode == 2 and 'needs --config' in finished.stderr
