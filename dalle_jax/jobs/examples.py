"""Records of a split, as pictures and captions, for sheets and scores."""

from collections.abc import Iterable, Iterator

import numpy as np
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.data.batches import Preprocess, Source
from dalle_jax.data.registry import Dataset
from dalle_jax.data.tokenizer import PAD, Tokenizer

MOST_CAPTIONS = 5_000  # read for sheets and scores; reading a caption may mean reading its picture


def first_images(config: Config, dataset: Dataset, split: str, count: int) -> np.ndarray:
  """The first pictures of a split as the models see them, uint8 [N, H, W, 3]."""
  source = dataset.open(split)
  transform = Preprocess(image_size=config.data.image_size, resampling=config.data.resampling)
  generator = np.random.default_rng(0)  # nothing is drawn from it: centre crop, no flip
  return np.stack([transform(source[i], generator)['image'] for i in range(min(count, len(source)))])


def batches(
  config: Config, tokenizer: Tokenizer | None, source: Source, count: int, batch_size: int, mesh: Mesh
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """The first `count` records in batches of one shape, with the number of real rows; the last repeats a record.

  Args:
    config: of the experiment.
    tokenizer: of the captions; without it there is no 'text' beside 'image'.
    source: the records.
    count: how many.
    batch_size: records at a time, rounded up to what the devices divide.
    mesh: of the devices.
  """
  transform = Preprocess(
    image_size=config.data.image_size, resampling=config.data.resampling, tokenizer=tokenizer,
    text_length=config.tokenizer.text_length,
  )  # fmt: skip
  size = sharding.rounded_batch(batch_size, mesh)
  for begin in range(0, count, size):
    rows = [min(i, count - 1) for i in range(begin, begin + size)]
    generator = np.random.default_rng(0)  # nothing is drawn from it: centre crop, no flip, no dropout
    examples = [transform(source[i], generator) for i in rows]
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    yield min(size, count - begin), batch


def caption_pieces(tokenizer: Tokenizer, text: np.ndarray) -> list[str]:
  """What the token ids [T] of a caption stand for, each by itself, and '(end)' for the pad that ends it."""
  return [*(tokenizer.decode([i]) or '\u2423' for i in text if i != PAD), '(end)']


def captions(dataset: Dataset, split: str) -> list[str]:
  """The captions of the first MOST_CAPTIONS records of a split that have one."""
  source = dataset.open(split)
  found = (source[i]['caption'] for i in range(min(len(source), MOST_CAPTIONS)))
  return [caption for caption in found if caption.strip()]


def held_out_split(dataset: Dataset) -> str:
  """The split that models are measured on: 'validation', or, where nothing is held out, 'train'."""
  return 'validation' if 'validation' in dataset.splits else 'train'


def spread(items: Iterable[str], count: int) -> list[str]:
  """`count` different items at even distances: a folder's neighbours often look alike."""
  unique = list(dict.fromkeys(items))
  if len(unique) <= count:
    return unique
  return [unique[i * len(unique) // count] for i in range(count)]


def sheet_splits(dataset: Dataset) -> dict[str, str]:
  """The splits whose captions are drawn on sheets, with what to call them."""
  names = {'train': 'captions seen in training', 'validation': 'captions not seen in training'}
  if 'held_out' in dataset.splits:
    names = {'validation': 'new captions', 'held_out': 'combinations that never occur in training'}
  return {split: name for split, name in names.items() if split in dataset.splits}
