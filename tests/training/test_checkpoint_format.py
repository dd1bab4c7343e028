"""Checkpoints of every version of the format, which later code must go on to read.

Each in tests/golden/checkpoints/VERSION was written by the code of its time: the run below, stopped after 4 steps.
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


def test_there_is_one_of_every_version():
  assert list(range(1, FORMAT_VERSION + 1)) == VERSIONS


@pytest.mark.parametrize('version', VERSIONS)
def test_an_old_checkpoint_is_continued_as_if_it_were_new(fit, tmp_path, version):
  shutil.copytree(GOLDEN / str(version), tmp_path / 'old' / 'checkpoints')
  continued, whole = fit(tmp_path / 'old', 12), fit(tmp_path / 'new', 12)
  for old, new in zip(jax.tree.leaves(continued), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(old, new, rtol=1e-5)  # it was another machine's
  losses = [[line['loss'] for line in read_metrics(tmp_path / name / 'metrics.jsonl')] for name in ('old', 'new')]
  # The first version kept nothing of the interval that its step 4 began.
  np.testing.assert_allclose(losses[0][version == 1 :], losses[1][1 + (version == 1) :], rtol=1e-5)
  with Checkpoints(tmp_path / 'old' / 'checkpoints', 3) as checkpoints:
    assert checkpoints.steps() == [4, 8, 12]
