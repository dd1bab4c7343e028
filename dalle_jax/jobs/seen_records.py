"""Leave held-out records that also occur in training out of everything that is measured."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from dalle_jax import hosts
from dalle_jax.config import Config
from dalle_jax.data.checks import seen
from dalle_jax.data.registry import Dataset
from dalle_jax.data.unreadable import Readable
from dalle_jax.hosts import say
from dalle_jax.jobs.evaluate.features import Cache
from dalle_jax.training.progress import Progress

DIRECTORY = 'overlaps'  # in the work directory: digests of training and held-out records


def leave_out(config: Config, dataset: Dataset, training: Dataset, directory: Path) -> Dataset:
  """Return a data set whose held-out splits lack the records that also occur in training; see `data.checks.seen`.

  Splits without a new record are left out. `Dataset.overlaps` counts the records that occur in training. Host 0 hashes
  the records; the other hosts read its cache.

  Args:
    config: The configuration of the models: image size, resampling, whether they read captions, and the limit.
    dataset: The data set to measure on.
    training: The data set that the models are trained on.
    directory: The directory of the cached digests.
  """
  is_first, result = jax.process_index() == 0, dataset
  for turn in (True, False):
    with hosts.together('comparing held-out records with training'):
      if is_first == turn:
        result = _without_seen(config, dataset, training, directory)
  for overlap in result.overlaps.values():
    say(overlap.describe())
  return result


def _without_seen(config: Config, dataset: Dataset, training: Dataset, directory: Path) -> Dataset:
  held_out = [split for split in dataset.splits if split != 'train' or dataset is not training]
  if not held_out:
    return dataset
  train, num_train = _digests(config, training, 'train', directory), len(training.open('train'))
  subsets, overlaps = {}, {}
  for split in held_out:
    source = dataset.open(split)
    own = _digests(config, dataset, split, directory)
    indices, overlaps[split] = seen.compare(split, own, train, (len(source), num_train), config.reads_captions)
    seen_indices = set(range(len(source))) - set(indices)
    subsets[split] = Readable(source, seen_indices) if seen_indices else source
  splits = tuple(split for split in dataset.splits if split not in subsets or len(subsets[split]))
  return dataclasses.replace(
    dataset,
    splits=splits,
    overlaps=overlaps,
    _open=lambda split: subsets[split] if split in subsets else dataset.open(split),
  )


def _digests(config: Config, dataset: Dataset, split: str, directory: Path) -> np.ndarray:
  """The digests of the first records of a split, uint64 [N, 1 + C], from the cache if possible."""
  source, data = dataset.open(split), config.data
  count = min(len(source), config.evaluation.num_compared)
  # The fingerprint covers the contents of the files. A run keeps it if files break, and so measures the same records.
  facts = {
    'data set': dataset.fingerprint, 'split': split, 'number of records': count, 'image size': data.image_size,
    'resampling': data.resampling,
  }  # fmt: skip

  def make() -> np.ndarray:
    with Progress(f'comparing {split}', count, 'record', enabled=jax.process_index() == 0) as progress:
      return seen.digests(data, source, count, progress.update)

  name = f'{split}_{dataset.fingerprint[:12]}_{data.image_size}'
  return Cache(directory).get(name, facts, make)
