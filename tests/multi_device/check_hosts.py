"""One of several hosts, or the only one: agrees, refuses, trains a toy; prints what came of it, as JSON.

    check_hosts.py INDEX COUNT PORT DIRECTORY

Run by `test_hosts.py`: hosts are processes of their own.
"""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import jax

from dalle_jax import hosts
from dalle_jax.config import Config, MeshConfig, TrainingConfig
from dalle_jax.flags import start_jax
from dalle_jax.sharding import make_mesh
from dalle_jax.training.loop import train

BATCH_SIZE = 8


def _toy():
  """The task and the stream of the training tests."""
  path = pathlib.Path(__file__).parents[1] / 'training' / 'conftest.py'
  spec = importlib.util.spec_from_file_location('toy', path)
  module = importlib.util.module_from_spec(spec)
  sys.modules['toy'] = module  # where dataclasses look themselves up
  spec.loader.exec_module(module)
  return module


def _message(work, *arguments, **options):
  """The name and the text of the error of a call."""
  try:
    work(*arguments, **options)
  except (Exception, KeyboardInterrupt) as error:
    return f'{type(error).__name__}: {error}'
  return ''


def _fail(index, error):
  with hosts.together('making the data'):
    if jax.process_index() == index:
      raise error


def check_talk(index, directory):
  config = Config().to_dict()
  other = {**config, 'prior': {**config['prior'], 'num_layers': config['prior']['num_layers'] + index}}
  facts = hosts.facts(config, workdir='run')
  changed = {**facts, 'source files': {**facts['source files'], 'train.py': f'changed {index}'}}
  return {
    'agreed': _message(hosts.agree, facts),
    'other config': _message(hosts.agree, hosts.facts(other, workdir='run')),
    'other code': _message(hosts.agree, changed),
    'shared': _message(hosts.shared_directory, directory / 'run'),
    'not shared': _message(hosts.shared_directory, directory / f'host_{index}', patience_s=0.1),
    'not to be made': _message(hosts.shared_directory, directory / 'file' / 'run', patience_s=0.1),
    'all well': _message(_fail, -1, None),
    'mistake': _message(_fail, 0, OSError('disk full')),
    'error': _message(_fail, 1, RuntimeError('a bug')),
    'stopped': _message(_fail, 1, KeyboardInterrupt()),
  }


def check_training(index, count, directory):
  toy = _toy()
  share = BATCH_SIZE // count

  class Share(toy.Stream):
    def __next__(self):
      return {name: rows[index * share : (index + 1) * share] for name, rows in super().__next__().items()}

  config = TrainingConfig(
    num_steps=3, batch_size=BATCH_SIZE, learning_rate=0.05, schedule='constant', warmup_steps=0, ema_decay=0.9,
    log_every=1, eval_every=0, checkpoint_every=3, keep_checkpoints=3,
  )  # fmt: skip
  for num_steps in (3, 5):  # the second continues from the checkpoint of the first
    state = train(
      toy.LinearTask(noise=0.1),
      dataclasses.replace(config, num_steps=num_steps),
      mesh=make_mesh(MeshConfig()),
      seed=0,
      workdir=directory / f'trained_by_{count}',
      batches=Share(),
      logging=toy.QUIET,
    )
  return {'kernel': jax.device_get(state.params['model']['kernel']).ravel().tolist(), 'step': int(state.step)}


def main():
  index, count, port, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])
  if count > 1:
    start_jax(True, f'localhost:{port}', count, index)
  result = check_talk(index, directory) if count > 1 else {}
  print('RESULT', json.dumps(result | check_training(index, count, directory)))


if __name__ == '__main__':
  main()
