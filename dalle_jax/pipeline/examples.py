"""A few records of a split, as pictures and captions, for sheets and scores."""

from collections.abc import Iterable

import numpy as np

from dalle_jax.config import Config
from dalle_jax.data.pipeline import Preprocess
from dalle_jax.data.registry import Dataset

MOST_CAPTIONS = 5_000  # read for sheets and scores; reading a caption may mean reading its picture


def first_images(config: Config, dataset: Dataset, split: str, count: int) -> np.ndarray:
  """The first pictures of a split as the models see them, uint8 [N, H, W, 3]."""
  source = dataset.open(split)
  transform = Preprocess(image_size=config.data.image_size, resampling=config.data.resampling)
  generator = np.random.default_rng(0)  # nothing is drawn from it: centre crop, no flip
  return np.stack([transform(source[i], generator)['image'] for i in range(min(count, len(source)))])


def captions(dataset: Dataset, split: str) -> list[str]:
  """The captions of the first MOST_CAPTIONS records of a split that have one."""
  source = dataset.open(split)
  found = (source[i]['caption'] for i in range(min(len(source), MOST_CAPTIONS)))
  return [caption for caption in found if caption.strip()]


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
