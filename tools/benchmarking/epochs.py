"""The time of an epoch of the prior on pictures and on their codes."""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from dalle_jax import bundle, sharding, stages
from dalle_jax.config import Config
from dalle_jax.jobs.study import image_codes
from dalle_jax.jobs.train import picture_data
from dalle_jax.jobs.train.experiment import Experiment
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import create_state
from dalle_jax.training.step import make_train_step


class _Epochs:
  """Trains a prior on a data set."""

  def __init__(self, config: Config, workdir: Path):
    config, space = picture_data.with_source(config), Workspace(str(workdir), config)
    dataset, tokenizer = picture_data.tokenize(config, space, picture_data.prepare(config, space))
    mesh = sharding.make_mesh(config.mesh, model=config)
    experiment = Experiment(config, space, mesh, dataset, tokenizer)
    self._mesh, self._stream = mesh, picture_data.make_batches(experiment, stages.find('prior'))[0]
    task, training = experiment.task('prior'), config.prior_training
    tx = make_optimizer(training)
    params = bundle.load(Path(config.dvae.pretrained), mesh, needs=('dvae',)).params
    with sharding.use_mesh(mesh):
      state = create_state(task, tx, mesh, config.seed, training.ema_decay > 0)
      self._state = state.replace(frozen={**state.frozen, 'dvae': params['dvae']})
      self._step = make_train_step(task, tx, training, mesh, config.seed)
    self.num_pictures = len(dataset.open('train'))
    self.num_steps = max(self.num_pictures // training.batch_size, 1)

  def seconds(self, num_steps: int) -> float:
    """The time of so many steps, with reading."""
    start, metrics = time.perf_counter(), None
    with sharding.use_mesh(self._mesh):
      for _ in range(num_steps):
        batch: Any = sharding.to_global(next(self._stream), self._mesh)
        self._state, metrics = self._step(self._state, batch)
      jax.block_until_ready(metrics)
    return time.perf_counter() - start


def print_epochs(config: Config, rounds: int) -> None:
  """Encodes the configured pictures, then prints the time of an epoch on the pictures and on the codes, in turns."""
  with tempfile.TemporaryDirectory() as directory:
    root = Path(directory)
    start = time.perf_counter()
    image_codes.run(config, root / 'codes')
    encoding = time.perf_counter() - start
    data = dataclasses.replace(config.data, source='auto', path=str(root / 'codes'))
    configs = {'pictures': config, 'codes': dataclasses.replace(config, data=data)}
    epochs = {name: _Epochs(own, root / name) for name, own in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for own in epochs.values():
      own.seconds(2)  # compiles
    for _ in range(rounds):
      for name, own in epochs.items():
        seconds[name].append(own.seconds(own.num_steps))
  medians = {name: statistics.median(times) for name, times in seconds.items()}
  print(f'{epochs["codes"].num_pictures} training pictures, {rounds} rounds; encoding once took {encoding:.1f} s')
  for name, median in medians.items():
    print(f'an epoch on {name:<9} {median:>8.2f} s (range {min(seconds[name]):.2f} to {max(seconds[name]):.2f})')
  print(f'{medians["pictures"] / medians["codes"]:.2f} times as fast on codes')
