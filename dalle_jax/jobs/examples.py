"""Images and captions of a data set's records, for sheets and scores."""

from collections.abc import Iterable, Iterator

import numpy as np
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.data.batches import Preprocess, Source
from dalle_jax.data.caption_text import is_empty
from dalle_jax.data.registry import Dataset
from dalle_jax.data.tokenizer import PAD, Tokenizer

MOST_CAPTIONS = 5_000  # limit on records read for captions; some data sets decode the image to read its caption


def first_images(config: Config, dataset: Dataset, split: str, count: int) -> np.ndarray:
  """The first `count` images of a split, cropped and resized to the models' input: uint8 [N, H, W, 3]."""
  source = dataset.open(split)
  transform = Preprocess(
    image_size=config.data.image_size, resampling=config.data.resampling, max_pixels=config.data.max_image_pixels
  )
  generator = np.random.default_rng(0)  # unused, because the crop is central and images are not flipped
  return np.stack([transform(source[i], generator)['image'] for i in range(min(count, len(source)))])


def batches(
  config: Config, tokenizer: Tokenizer | None, source: Source, count: int, batch_size: int, mesh: Mesh
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """Yields the first `count` records as (number of real rows, batch), where all batches have the same shape.

  Repetitions of the last record fill the last batch.

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
  for begin in range(0, count, size):
    indices = [min(i, count - 1) for i in range(begin, begin + size)]
    generator = np.random.default_rng(0)  # unused, because there is no random crop, flip or BPE dropout
    examples = [transform(source[i], generator) for i in indices]
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    yield min(size, count - begin), batch


def caption_pieces(tokenizer: Tokenizer, text: np.ndarray) -> list[str]:
  """Decodes each token of a caption, ids [T], separately; a final '(end)' stands for the padding."""
  return [*(tokenizer.decode([i]) or '\u2423' for i in text if i != PAD), '(end)']


def captions(dataset: Dataset, split: str) -> list[str]:
  """The non-empty captions of the first MOST_CAPTIONS records of a split."""
  source = dataset.open(split)
  all_captions = (source[i]['caption'] for i in range(min(len(source), MOST_CAPTIONS)))
  return [caption for caption in all_captions if not is_empty(caption)]


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
