"""Trains the toy task in WORKDIR and writes a digest of the result; tests kill it and start it again.

toy_run.py WORKDIR
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from toy_training import QUIET, LinearTask, Stream

from dalle_jax.config import MeshConfig, TrainingConfig
from dalle_jax.sharding import make_mesh
from dalle_jax.training.loop import Hook, train

NUM_STEPS = 40


class Wide(LinearTask):
  """The toy task with an extra megabyte of parameters, so that writing a checkpoint takes a while."""

  def init(self, key):
    collections = super().init(key)
    unused = {'value': jax.random.normal(key, (256, 1024))}
    return {**collections, 'model': {**collections['model'], 'unused': unused}}


def digest(tree) -> str:
  """A hash of the names, types, shapes and values of all leaves."""
  digest_of_leaves = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    digest_of_leaves.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
    digest_of_leaves.update(np.asarray(leaf).tobytes())
  return digest_of_leaves.hexdigest()


def main() -> None:
  workdir = Path(sys.argv[1])
  config = TrainingConfig(
    num_steps=NUM_STEPS, batch_size=8, learning_rate=0.05, warmup_steps=3, log_every=3, eval_every=5,
    checkpoint_every=2, keep_checkpoints=2, ema_decay=0.9, ema_every=2,
  )  # fmt: skip
  batches = Stream()
  state = train(
    Wide(noise=0.1), config, mesh=make_mesh(MeshConfig()), seed=3, workdir=workdir, batches=batches, logging=QUIET,
    eval_batches=lambda: [next(Stream(seed=9))], hooks=[Hook(1, lambda state, step: time.sleep(0.02))],
  )  # fmt: skip
  (workdir / 'result.json').write_text(json.dumps({'state': digest(state), 'data': batches.state()}))


if __name__ == '__main__':
  main()
