"""Trains a toy task on several meshes in turn, each resuming the previous run, and on one device; prints both as JSON.

Run by `test_resume_on_meshes.py` in a separate process, because JAX fixes the number of devices when it starts.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from toy_training import QUIET, LinearTask, Stream

from dalle_jax import sharding
from dalle_jax.config import MeshConfig, TrainingConfig
from dalle_jax.training.loop import train
from dalle_jax.training.metrics_log import read_metrics

SIZE = 8
MESHES = (
  MeshConfig(data=2, fsdp=2, tensor=2),
  MeshConfig(data=1, fsdp=8),
  MeshConfig(dcn_data=2, data=1, fsdp=2, tensor=2),
  MeshConfig(data=1, tensor=8),
)
STEPS = 3  # training steps on each mesh


class Square(LinearTask):
  """The toy task with a matrix that every mesh can split."""

  def init(self, key):
    kernel = 0.1 * jax.random.normal(key, (SIZE, SIZE))
    return {
      'model': {'kernel': nn.LogicallyPartitioned(kernel, names=('embed', 'mlp')), 'bias': jnp.zeros(SIZE)},
      'offset': {'value': jnp.zeros(SIZE)},
    }


class WideStream(Stream):
  """Batches for the square kernel."""

  def __next__(self):
    rng = np.random.default_rng([self.seed, self.position])
    self.position += 1
    return {name: rng.normal(size=(self.batch_size, SIZE)).astype(np.float32) for name in ('x', 'y')}


def run(workdir, mesh, num_steps):
  config = TrainingConfig(
    num_steps=num_steps, batch_size=8, learning_rate=0.05, schedule='constant', warmup_steps=0, log_every=2,
    eval_every=0, checkpoint_every=0, ema_decay=0.9,
  )  # fmt: skip
  return train(Square(noise=0.1), config, mesh=mesh, seed=3, workdir=workdir, batches=WideStream(), logging=QUIET)


def losses(workdir):
  """Training losses by step, at even steps only: every run also logs its last step, which may be odd."""
  return {line['step']: line['loss'] for line in read_metrics(workdir / 'metrics.jsonl') if line['step'] % 2 == 0}


def main() -> None:
  assert jax.device_count() == 8, jax.devices()
  workdir = Path(sys.argv[1])
  shares = []
  for i, sizes in enumerate(MESHES, start=1):
    many = run(workdir / 'many', sharding.make_mesh(sizes), i * STEPS)
    shares.append([many.params['model']['kernel'].addressable_shards[0].data.size, many.ema['model']['kernel'].size])
  one = run(workdir / 'one', sharding.one_device_mesh(), len(MESHES) * STEPS)
  error = max(
    float(np.abs(np.asarray(a) - np.asarray(b)).max())
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True)
  )
  print(json.dumps({
    'losses': losses(workdir / 'many'), 'expected': losses(workdir / 'one'), 'error': error, 'shares': shares,
  }))  # fmt: skip


if __name__ == '__main__':
  main()
