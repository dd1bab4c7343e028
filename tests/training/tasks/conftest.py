"""Parameters and batches for the tests of tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn


@pytest.fixture(scope='session')
def random_params():
  """Make random parameters for a task. Initial parameters contain zeros, which could hide mistakes."""

  def make(task, scale):
    rng = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)

  return make


@pytest.fixture(scope='session')
def captioned_batch():
  """Make four images of 8 x 8 pixels with captions of four ids; the first caption has two ids and two pads."""

  def make(text_vocab_size):
    rng = np.random.default_rng(1)
    text = rng.integers(1, text_vocab_size, (4, 4)).astype(np.int32)
    text[0, 2:] = 0
    return {'image': rng.integers(0, 256, (4, 8, 8, 3), np.uint8), 'text': text}

  return make
