"""Checks `dalle_jax.hosts` and trains a toy task as one of several hosts, or alone; prints the results as JSON.

    check_hosts.py INDEX COUNT PORT DIRECTORY

Run by `test_hosts.py`, with one process per host.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
import random_models
import toy_training

from dalle_jax import bundle, hosts, sharding
from dalle_jax.config import Config, MeshConfig, TrainingConfig
from dalle_jax.flags import start_jax
from dalle_jax.sharding import make_mesh
from dalle_jax.training.loop import train
from dalle_jax.training.metrics_log import read_metrics

BATCH_SIZE = 8


def _message(function, *arguments, **options):
  """Calls a function and returns the type and text of its error; empty if there is none."""
  try:
    function(*arguments, **options)
  except (Exception, KeyboardInterrupt) as error:
    return f'{type(error).__name__}: {error}'
  return ''


def _fail(index, error):
  """Raises an error on one host, inside `together`."""
  with hosts.together('making the data'):
    if jax.process_index() == index:
      raise error


def check_coordination(index, directory):
  """The error messages of calls that succeed and of calls that fail, by case."""
  config = Config().to_dict()
  other = {**config, 'prior': {**config['prior'], 'num_layers': config['prior']['num_layers'] + index}}
  facts = hosts.facts(config, workdir='run')
  changed = {**facts, 'source files': {**facts['source files'], 'train.py': f'changed {index}'}}
  return {
    'agreed': _message(hosts.agree, facts),
    'other config': _message(hosts.agree, hosts.facts(other, workdir='run')),
    'other code': _message(hosts.agree, changed),
    'same data': _message(hosts.check_same, 'ä', 'The data', 'Copy it.'),
    'other data': _message(hosts.check_same, f'{index} records', 'The data', 'Copy it.'),
    'shared': _message(hosts.shared_directory, directory / 'run'),
    'not shared': _message(hosts.shared_directory, directory / f'host_{index}', patience_s=0.1),
    'not to be made': _message(hosts.shared_directory, directory / 'file' / 'run', patience_s=0.1),
    'all well': _message(_fail, -1, None),
    'mistake': _message(_fail, 0, OSError('disk full')),
    'error': _message(_fail, 1, RuntimeError('a bug')),
    'stopped': _message(_fail, 1, KeyboardInterrupt()),
  }


def check_training(index, count, directory):
  """Trains, resumes from the checkpoint and trains on; returns the parameters, and counts of replaced rows.

  Three rows of each batch are replaced, one or two of each host. At last, they exceed the limit.
  """
  share = BATCH_SIZE // count

  class Share(toy_training.Stream):
    def __next__(self):
      return {name: rows[index * share : (index + 1) * share] for name, rows in super().__next__().items()}

    def replaced(self):
      return np.arange(index * share, (index + 1) * share) % 3 == 0

    def most_replaced(self, num_batches):
      return limit

  config = TrainingConfig(
    num_steps=3, batch_size=BATCH_SIZE, learning_rate=0.05, schedule='constant', warmup_steps=0, ema_decay=0.9,
    log_every=1, eval_every=0, checkpoint_every=3, keep_checkpoints=3,
  )  # fmt: skip
  workdir, limit = directory / f'trained_by_{count}', 15

  def run(num_steps):
    return train(
      toy_training.LinearTask(noise=0.1), dataclasses.replace(config, num_steps=num_steps),
      mesh=make_mesh(MeshConfig()), seed=0, workdir=workdir, batches=Share(), logging=toy_training.QUIET,
    )  # fmt: skip

  run(3)
  state = run(5)  # resumes from the checkpoint of the first
  hosts.barrier('trained')
  counts = {line['step']: line['bad_records'] for line in read_metrics(workdir / 'metrics.jsonl')}
  result = {'kernel': jax.device_get(state.params['model']['kernel']).ravel().tolist(), 'step': int(state.step)}
  return result | {'bad': counts, 'too bad': _message(run, 20)}


def check_bundle(count, directory):
  """Writes a bundle whose arrays are split over the hosts, loads it, and loads it again with one bit flipped."""
  path, config = directory / f'model_of_{count}', Config.from_dict(random_models.PICTURES)
  tokenizer = random_models.caption_tokenizer()
  params = random_models.random_params(config, tokenizer.vocab_size)
  mesh = make_mesh(MeshConfig(data=1, fsdp=count))
  boxed = jax.eval_shape(lambda: bundle.init_params(config, tokenizer.vocab_size))
  params = jax.tree.map(
    lambda leaf, split: jax.make_array_from_callback(leaf.shape, split, lambda i: np.asarray(leaf)[i]),
    params,
    sharding.param_shardings(boxed, mesh),
  )
  bundle.save(path, config, tokenizer, params, 'data')
  loaded = bundle.load(path, mesh)
  hosts.barrier('loaded')
  if jax.process_index() == 0:
    file = next(path.rglob('params/**/d/*'))
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
  hosts.barrier('damaged')
  return {
    'split': sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params)),
    'params': loaded.info['params'],
    'fingerprint': bundle.fingerprint(loaded.params),
    'damaged': _message(bundle.load, path, mesh),
  }


def main():
  index, count, port, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])
  if count > 1:
    start_jax(True, f'localhost:{port}', count, index)
  result = check_coordination(index, directory) if count > 1 else {}
  print('RESULT', json.dumps(result | check_training(index, count, directory) | check_bundle(count, directory)))


if __name__ == '__main__':
  main()
