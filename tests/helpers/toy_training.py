"""A tiny task for tests of the training loop: a noisy linear map with a frozen offset, and its data."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.config import LoggingConfig

FEATURES = 3
QUIET = LoggingConfig(tensorboard=False)


def _boxed(array, *names):
  return nn.LogicallyPartitioned(array, names=names)


@dataclasses.dataclass(frozen=True)
class LinearTask:
  """loss = mean((x @ kernel + bias + frozen offset + noise * normal - y)^2)."""

  noise: float = 0.0
  name: str = 'linear'
  trainable: tuple[str, ...] = ('model',)
  updated: tuple[str, ...] = ()

  def init(self, key):
    kernel = jax.random.normal(key, (FEATURES, 2))
    return {
      'model': {'kernel': _boxed(kernel, 'embed', 'mlp'), 'bias': _boxed(jnp.zeros(2), 'mlp')},
      'offset': {'value': _boxed(jnp.full(2, 0.5), None)},
    }

  def _error(self, params, batch):
    model = params['model']
    return batch['x'] @ model['kernel'] + (model['bias'] + params['offset']['value'])[None] - batch['y']

  def loss(self, params, batch, key, step):
    error = self._error(params, batch)
    error += self.noise * jax.random.normal(key, error.shape)
    return jnp.mean(error**2), {'mean_x': batch['x'].mean()}

  def evaluate(self, params, batch, key, step):
    error = self._error(params, batch)
    return {'squares': (error**2).mean(0), 'step': step.astype(jnp.float32)}

  def summarize(self, means):
    return {'loss': float(means['squares'].mean()), 'step': float(means['step'])}


class Stream:
  """Endless batches. Batch i depends only on the seed and i; the batches listed in `poison` contain a NaN."""

  def __init__(self, batch_size=8, seed=0, poison=(), fixed=False):
    self.batch_size, self.seed, self.poison, self.fixed = batch_size, seed, poison, fixed
    self.position = 0

  def __next__(self):
    rng = np.random.default_rng([self.seed, 0 if self.fixed else self.position])
    x = rng.normal(size=(self.batch_size, FEATURES)).astype(np.float32)
    y = x @ np.arange(FEATURES * 2, dtype=np.float32).reshape(FEATURES, 2) + 1
    if self.position in self.poison:
      x[0, 0] = np.nan
    self.position += 1
    return {'x': x, 'y': y}

  def state(self):
    return {'position': self.position}

  def restore(self, state):
    self.position = state['position']

  def replaced(self):
    return np.array(False)

  def most_replaced(self, num_batches):
    return 0

  def bad_names(self):
    return []

  def records(self, number, most):
    return [f'{number}/{row}' for row in range(min(most, self.batch_size))]
