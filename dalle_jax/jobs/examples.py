"""Images and captions of a data set's records, for sheets and scores."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from absl import logging
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.data.batches import Preprocess, Source
from dalle_jax.data.registry import Dataset
from dalle_jax.data.text.caption_text import is_empty
from dalle_jax.data.text.tokenizer import PAD, Tokenizer
from dalle_jax.data.unreadable import MOST_NAMED, Readable, is_unreadable, problem
from dalle_jax.data.unreadable import captions as readable_captions
from dalle_jax.data.unreadable import readable as readable_records
from dalle_jax.hosts import say

MOST_CAPTIONS = 5_000  # limit on records read for captions; some data sets decode the image to read its caption


def first_images(config: Config, dataset: Dataset, split: str, count: int) -> np.ndarray:
  """The first `count` readable images of a split, cropped and resized to the models' input: uint8 [N, H, W, 3].

  Raises:
    ValueError: no image can be read.
  """
  transform = _preprocess(config)
  return np.stack([example['image'] for example in _first(dataset.open(split), transform, count)])


def _preprocess(config: Config) -> Preprocess:
  """The transform to the models' input, without captions."""
  return Preprocess(
    image_size=config.data.image_size, resampling=config.data.resampling, max_pixels=config.data.max_image_pixels
  )


def readable(config: Config, source: Source, split: str, most: int | None = None) -> Readable:
  """Leave unreadable records among the first `most` (None: all) out of all figures, and print how many.

  Raises:
    ValueError: no record can be read.
  """
  transform = _preprocess(config)
  records, problems = readable_records(source, lambda record: transform(record, np.random.default_rng(0)), most)
  count = len(records) + len(problems)
  if not problems:
    return records
  named = '; '.join(problems[:MOST_NAMED]) + ('; ...' if len(problems) > MOST_NAMED else '')
  message = f'{len(problems)} of {count} records of the split {split!r} cannot be read ({named})'
  if not len(records):
    raise ValueError(f'{message}, so there is nothing to measure. Mend the data, or give other data.')
  say(f'{message}. They are left out of all figures, which measure {len(records)} records.')
  return records


def _first(source: Source, transform: Preprocess, count: int | None = None) -> Iterator[dict[str, np.ndarray]]:
  """Yields the examples of the first `count` records that can be read (None: all), without augmentation."""
  generator = np.random.default_rng(0)  # unused, because there is no random crop, flip or BPE dropout
  remaining = len(source) if count is None else count
  last_problem = 'the split has no records'
  for index in range(len(source)):
    if not remaining:
      return
    try:
      example = transform(source[index], generator)
    except Exception as error:
      if not is_unreadable(error):
        raise
      last_problem = problem(source, index, error)
      logging.warning('A record cannot be read and is left out: %s', last_problem)
      continue
    remaining -= 1
    yield example
  if remaining == (len(source) if count is None else count):
    raise ValueError(f'No record can be read; the last problem was {last_problem}')


def batches(
  config: Config, tokenizer: Tokenizer | None, source: Source, count: int, batch_size: int, mesh: Mesh
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """Yields the first `count` records as (number of real rows, batch), where all batches have the same shape.

  Records that cannot be read are left out. `readable` leaves them out before and says so. Repetitions of the last
  record fill the last batch.

  Args:
    config: The experiment's configuration.
    tokenizer: The captions' tokenizer; None for batches of 'image' without 'text'.
    source: The records.
    count: The number of records.
    batch_size: Records per batch, rounded up to a multiple of the number of devices that split it.
    mesh: The device mesh.
  """
  transform = Preprocess(
    image_size=config.data.image_size, resampling=config.data.resampling, tokenizer=tokenizer,
    text_length=config.tokenizer.text_length, max_pixels=config.data.max_image_pixels,
  )  # fmt: skip
  size = sharding.rounded_batch(batch_size, mesh)
  examples = _first(Readable(source, most=count), transform)
  while chunk := list(itertools.islice(examples, size)):
    padded = chunk + [chunk[-1]] * (size - len(chunk))
    yield len(chunk), {name: np.stack([example[name] for example in padded]) for name in chunk[0]}


def caption_pieces(tokenizer: Tokenizer, text: np.ndarray) -> list[str]:
  """Decodes each token of a caption, ids [T], separately; a final '(end)' stands for the padding."""
  return [*(tokenizer.decode([i]) or '\u2423' for i in text if i != PAD), '(end)']


def captions(dataset: Dataset, split: str) -> list[str]:
  """The non-empty captions of the first MOST_CAPTIONS records of a split."""
  return [caption for caption in readable_captions(dataset.open(split), MOST_CAPTIONS) if not is_empty(caption)]


def held_out_split(dataset: Dataset) -> str:
  """The split that models are measured on: 'validation', or 'train' if the data set holds nothing out."""
  return 'validation' if 'validation' in dataset.splits else 'train'


def spread(items: Iterable[str], count: int) -> list[str]:
  """Up to `count` distinct items, evenly spaced, because neighbours in a folder often look alike."""
  unique = list(dict.fromkeys(items))
  if len(unique) <= count:
    return unique
  return [unique[i * len(unique) // count] for i in range(count)]


def sheet_splits(dataset: Dataset) -> dict[str, str]:
  """The splits whose captions get a sample sheet, as {split: title}."""
  titles = {'train': 'captions seen in training', 'validation': 'captions not seen in training'}
  if 'held_out' in dataset.splits:
    titles = {'validation': 'new captions', 'held_out': 'combinations that never occur in training'}
  return {split: title for split, title in titles.items() if split in dataset.splits}
