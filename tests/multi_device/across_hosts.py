"""Trains a toy task on two hosts with the mesh axis `tensor` between them, and damages a checkpoint of host 1.

    across_hosts.py INDEX COUNT PORT DIRECTORY

Prints the trained parameters as JSON. Run by `test_across_hosts.py`. With COUNT 1, one process has both devices.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from toy_training import QUIET, LinearTask, Stream

from dalle_jax import hosts
from dalle_jax.config import MeshConfig, TrainingConfig
from dalle_jax.flags import start_jax
from dalle_jax.sharding import make_mesh, own_rows
from dalle_jax.training.loop import train

BATCH_SIZE = 8


class Wide(LinearTask):
  """The toy task with a parameter large enough that each host writes checkpoint files for its shard."""

  def init(self, key):
    collections = super().init(key)
    unused = nn.LogicallyPartitioned(jax.random.normal(key, (256, 256)), names=('mlp', None))
    return {**collections, 'model': {**collections['model'], 'unused': unused}}


class Rows(Stream):
  """A stream of this process's rows of each batch."""

  def __init__(self, rows):
    super().__init__(BATCH_SIZE)
    self.rows = list(rows)

  def __next__(self):
    return {name: values[self.rows] for name, values in super().__next__().items()}


def run(directory, num_steps):
  config = TrainingConfig(
    num_steps=num_steps, batch_size=BATCH_SIZE, learning_rate=0.05, schedule='constant', warmup_steps=0, ema_decay=0.9,
    log_every=1, eval_every=0, checkpoint_every=2, keep_checkpoints=3,
  )  # fmt: skip
  mesh = make_mesh(MeshConfig(data=1, tensor=2))
  batches = Rows(own_rows(mesh, BATCH_SIZE))
  return train(Wide(noise=0.1), config, mesh=mesh, seed=0, workdir=directory, batches=batches, logging=QUIET)


def damage(checkpoint):
  """Truncates one file that host 1 wrote, so that one of the hosts that share the checks finds the damage."""
  files = [path for path in (checkpoint / 'state' / 'ocdbt.process_1').rglob('d/*') if path.is_file()]
  assert files
  path = max(files, key=lambda path: path.stat().st_size)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def main():
  index, count, port, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])
  if count > 1:
    start_jax(True, f'localhost:{port}', count, index)
  run(directory, 4)
  if index == 0 and count > 1:
    damage(directory / 'checkpoints' / '4')
  hosts.barrier('damaged')
  state = run(directory, 6)
  kernel = state.params['model']['kernel']
  kernel = multihost_utils.process_allgather(kernel, tiled=True) if count > 1 else np.asarray(kernel)
  print('RESULT', json.dumps({'kernel': kernel.ravel().tolist(), 'step': int(state.step)}))


if __name__ == '__main__':
  main()
