"""Write or read checkpoints and bundles. A test runs one of the two under another version of Python and of JAX.

python other_python.py write DIRECTORY    trains the toy task for 4 steps and saves a model of random parameters
python other_python.py read DIRECTORY     restores both, trains on to step 8, and prints what it read as JSON
"""

import json
import platform
import sys
from pathlib import Path

import jax
import numpy as np
from random_models import PICTURES, caption_tokenizer, save_random
from toy_run import digest
from toy_training import QUIET, LinearTask, Stream

from dalle_jax import bundle
from dalle_jax.config import Config, MeshConfig, TrainingConfig
from dalle_jax.sharding import make_mesh, use_mesh
from dalle_jax.training.checkpoint import Checkpoints
from dalle_jax.training.loop import train
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import abstract_state

TASK = LinearTask(noise=0.1)
WRITTEN, TRAINED = 4, 8  # steps
CAPTION = 'a red circle'


def settings(num_steps: int) -> TrainingConfig:
  return TrainingConfig(
    num_steps=num_steps, batch_size=8, learning_rate=0.05, schedule='constant', warmup_steps=0, ema_decay=0.9,
    log_every=2, checkpoint_every=WRITTEN, keep_checkpoints=2,
  )  # fmt: skip


def fit(directory: Path, num_steps: int):
  return train(
    TASK, settings(num_steps), mesh=make_mesh(MeshConfig()), seed=3, workdir=directory / 'run', batches=Stream(),
    logging=QUIET, about={'config': {'seed': 3}},
  )  # fmt: skip


def write(directory: Path) -> None:
  fit(directory, WRITTEN)
  save_random(directory / 'model', Config.from_dict(PICTURES), caption_tokenizer())


def read(directory: Path) -> dict:
  """Digests of what must be read bit for bit, and the parameters after training on."""
  mesh = make_mesh(MeshConfig())
  with use_mesh(mesh):
    abstract = abstract_state(TASK, make_optimizer(settings(WRITTEN)), mesh, use_ema=True)
  with Checkpoints(directory / 'run' / 'checkpoints', 2) as checkpoints:
    restored = checkpoints.restore(WRITTEN, abstract)
  model = bundle.load(directory / 'model', mesh)
  state = fit(directory, TRAINED)
  return {
    'versions': [platform.python_version(), jax.__version__],
    'state': digest(restored.state),
    'data': restored.data,
    'meta': restored.meta,
    'model': [bundle.fingerprint(model.params), model.info['params'], model.config.to_dict()],
    'caption': model.tokenizer.encode(CAPTION),
    'trained': [np.asarray(leaf, np.float64).ravel().tolist() for leaf in jax.tree.leaves(state.params)],
  }


if __name__ == '__main__':
  command, path = sys.argv[1:]
  if command == 'write':
    write(Path(path))
  else:
    print(json.dumps(read(Path(path))))
