"""Stored checkpoints of every format version, which later code must be able to restore.

The code of each version wrote tests/golden/checkpoints/VERSION by the run below, stopped after 4 steps.
"""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from dalle_jax.training.checkpoint import Checkpoints
from dalle_jax.training.checkpoint_format import FORMAT_VERSION
from dalle_jax.training.loop import train
from dalle_jax.training.metrics_log import read_metrics

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'checkpoints'
VERSIONS = sorted(int(path.name) for path in GOLDEN.iterdir())


@pytest.fixture
def fit(linear_task, stream, mesh, quiet, make_config):
  def run(workdir, num_steps):
    config = make_config(num_steps=num_steps)
    return train(
      linear_task(noise=0.1), config, mesh=mesh, seed=3, workdir=workdir, batches=stream(), logging=quiet,
      about={'config': {'seed': 3}},
    )  # fmt: skip

  return run


def test_there_is_a_checkpoint_of_every_format_version():
  assert list(range(1, FORMAT_VERSION + 1)) == VERSIONS


@pytest.mark.parametrize('version', VERSIONS)
def test_a_run_from_an_old_checkpoint_equals_a_new_run(fit, tmp_path, version):
  shutil.copytree(GOLDEN / str(version), tmp_path / 'old' / 'checkpoints')
  resumed, uninterrupted = fit(tmp_path / 'old', 12), fit(tmp_path / 'new', 12)
  for old, new in zip(jax.tree.leaves(resumed), jax.tree.leaves(uninterrupted), strict=True):
    np.testing.assert_allclose(old, new, rtol=1e-5)  # not bitwise: another machine wrote the checkpoint
  losses = [[line['loss'] for line in read_metrics(tmp_path / name / 'metrics.jsonl')] for name in ('old', 'new')]
  # Format 1 does not store the metrics of the interval that began at step 4.
  np.testing.assert_allclose(losses[0][version == 1 :], losses[1][1 + (version == 1) :], rtol=1e-5)
  with Checkpoints(tmp_path / 'old' / 'checkpoints', 3) as checkpoints:
    assert checkpoints.steps() == [4, 8, 12]
