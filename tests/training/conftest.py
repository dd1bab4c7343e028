"""Fixtures around the toy task of `toy_training`."""

import jax
import numpy as np
import pytest
from toy_training import QUIET, LinearTask, Stream

from dalle_jax.config import MeshConfig, TrainingConfig
from dalle_jax.sharding import make_mesh


@pytest.fixture
def linear_task():
  return LinearTask


@pytest.fixture
def stream():
  return Stream


@pytest.fixture
def mesh():
  return make_mesh(MeshConfig())


@pytest.fixture
def quiet():
  return QUIET


@pytest.fixture
def make_config():
  """Make the configuration of a short run with a constant learning rate; keyword arguments override its keys."""

  def make(**changes):
    values = {
      'num_steps': 12,
      'batch_size': 8,
      'learning_rate': 0.05,
      'schedule': 'constant',
      'warmup_steps': 0,
      'ema_decay': 0.9,
      'log_every': 3,
      'eval_every': 0,
      'checkpoint_every': 4,
      'keep_checkpoints': 3,
    }
    return TrainingConfig(**(values | changes))

  return make


@pytest.fixture
def assert_trees_equal():
  """Check that two trees are bitwise equal."""

  def check(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
      assert left.dtype == right.dtype
      np.testing.assert_array_equal(np.asarray(left), np.asarray(right))

  return check
