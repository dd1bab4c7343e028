"""Batches from records: shuffled, decoded, cropped and tokenized by Grain, and continued exactly after a restart.

Everything in a batch is a function of (seed, position in the stream): which record, and the generator its random crop
and flip draw from. So the stream is the same for any number of threads, worker processes and hosts, and its state is
the number of batches taken.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags, logging

from dalle_jax.data import image as image_lib
from dalle_jax.data.crops import fit
from dalle_jax.data.tokenizer import Tokenizer, pad
from dalle_jax.data.wrong_captions import WrongCaptions

Record = dict[str, Any]
Transform = Callable[[Record, np.random.Generator], dict[str, np.ndarray]]


class Source(Protocol):
  """Random access to records {'image': bytes, 'caption': str, 'key': str}; picklable."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


class Preprocess:
  """The transform of training and evaluation: a record to {'image': ..., 'text': ...}. Picklable."""

  def __init__(
    self,
    image_size: int,
    crop: str = 'center',
    flip: bool = False,
    tokenizer: Tokenizer | None = None,
    text_length: int = 256,
    bpe_dropout: float = 0.0,
    resampling: str = 'area',
    wrong_captions: WrongCaptions | None = None,
  ):
    """Args as config.data and config.tokenizer; without a tokenizer there is no 'text'.

    With `wrong_captions`, which needs a tokenizer, there is 'wrong' too.
    """
    self._image_size = image_size
    self._crop = crop
    self._resampling = resampling
    self._flip = flip
    self._tokenizer = tokenizer
    self._bpe_dropout = bpe_dropout
    self._wrong_captions = wrong_captions
    self._num_tokens = text_length - 1  # the first text slot is the start of text
    self.num_truncated = 0  # captions cut so far, in this process

  def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns 'image' uint8 [image_size, image_size, 3] and, with a tokenizer, 'text' int32 [text_length - 1].

    With wrong captions there is 'wrong' too, like 'text', of a caption that is nearly right.

    Raises:
      ValueError: the picture cannot be decoded; the message names the record.
    """
    try:
      image = image_lib.decode(record['image'])
    except ValueError as error:
      raise ValueError(f'{record["key"]}: {error}') from error
    image = fit(image, self._image_size, self._crop, rng, self._resampling)
    if self._flip and rng.random() < 0.5:
      image = image[:, ::-1]
    if self._tokenizer is None:
      return {'image': image}
    example = {'image': image, 'text': self._tokens(record, rng)}
    if self._wrong_captions:
      example['wrong'] = self._tokens({**record, 'caption': self._wrong_captions(record['caption'], rng)}, rng)
    return example

  def _tokens(self, record: Record, rng: np.random.Generator) -> np.ndarray:
    ids = self._tokenizer.encode(record['caption'])
    if self._bpe_dropout:
      # Dropout makes captions longer; one that fits as it is must not be cut for it.
      longer = self._tokenizer.encode_with_dropout(record['caption'], self._bpe_dropout, rng)
      ids = longer if len(longer) <= self._num_tokens else ids
    if len(ids) > self._num_tokens:
      if self.num_truncated == 0:
        logging.warning(
          'The caption of %s has %d tokens and is cut to %d, as will be others; config.tokenizer.text_length allows '
          'more.', record['key'], len(ids), self._num_tokens,
        )  # fmt: skip
      self.num_truncated += 1
    return pad(ids, self._num_tokens)


class _Examples:
  """One process's rows of all the global batches, one after the other, as a random-access sequence."""

  def __init__(
    self,
    source: Source,
    transform: Transform,
    seed: int,
    shuffle: bool,
    rows: Sequence[int],
    batch_size: int,
    length: int,
  ):
    self._source, self._transform = source, transform
    self._seed, self._rows, self._batch_size, self._length = seed, rows, batch_size, length
    order = grain.MapDataset.range(len(source))
    # `repeat` shuffles each epoch anew.
    self._order = (order.seed(seed).shuffle() if shuffle else order).repeat(None)

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    batch, row = divmod(index, len(self._rows))
    position = batch * self._batch_size + self._rows[row]
    number, epoch = int(self._order[position]), position // len(self._source)
    return self._transform(self._source[number], np.random.default_rng([self._seed, epoch, number]))

  def names(self, batch: int, most: int) -> list[str]:
    """Of the first records of a global batch: their keys, or their numbers where they have none."""
    first = batch * self._batch_size
    positions = range(first, first + min(most, self._batch_size))
    numbers = [int(self._order[position]) for position in positions]
    return [str(self._source[number].get('key', f'record {number}')) for number in numbers]


class Batches:
  """An iterator of batches: dicts of numpy arrays with a leading batch axis.

  With several processes (hosts) each yields its own rows of every global batch, which is the one that a single process
  would yield.
  """

  def __init__(
    self,
    source: Source,
    transform: Transform,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool = True,
    repeat: bool = True,
    drop_remainder: bool = True,
    rows: Sequence[int] | None = None,
    num_workers: int = 0,
    num_threads: int = 4,
    fingerprint: str = '',
  ):
    """Prepares the stream; reading starts with the first batch.

    Args:
      source: the records.
      transform: (record, generator) -> dict of arrays of equal shapes; picklable if there are workers.
      batch_size: examples per global batch, over all processes.
      seed: of order and augmentation, 0 or more.
      shuffle: a new random order in each epoch; otherwise the source's order.
      repeat: endless; batches then run across the ends of epochs. Otherwise one pass.
      drop_remainder: with one pass, leaves out a last batch that is not full.
      rows: of every global batch, that this process reads (`sharding.own_rows`); None: all.
      num_workers: reading processes; 0 reads in threads of this one.
      num_threads: reading threads in each process.
      fingerprint: of the records; a stream is not continued with others.

    Raises:
      ValueError: no records, fewer than a batch in a single pass, or a last batch that processes cannot share.
    """
    rows = range(batch_size) if rows is None else tuple(rows)
    share = len(rows)
    _check(len(source), batch_size, repeat, drop_remainder, share)
    if repeat:
      length = sys.maxsize // batch_size * share
    else:
      length = len(source) // batch_size * share if drop_remainder else len(source)
    examples = _Examples(source, transform, seed, shuffle, rows, batch_size, length)
    self._examples = examples
    self._dataset = grain.MapDataset.source(examples).batch(share, drop_remainder=False)
    self._num_workers, self._num_threads = num_workers, num_threads
    self._identity = {'dataset_length': len(source), 'seed': seed, 'batch_size': batch_size, 'shuffle': shuffle,
                      'fingerprint': fingerprint}  # fmt: skip
    self._taken = 0
    self._iterator: grain.DatasetIterator | None = None

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._iterator is None:
      self._iterator = self._start()
    batch = next(self._iterator)
    self._taken += 1
    return batch

  def state(self) -> dict[str, Any]:
    """The position, ready for JSON; independent of the numbers of threads, workers and processes."""
    return {'batches': self._taken, **self._identity}

  def restore(self, state: dict[str, Any]) -> None:
    """Continues after the batch at which `state` was taken.

    Raises:
      ValueError: the state belongs to other data, another seed or another batch size.
    """
    # The first version did not say the fingerprint.
    old = {'fingerprint': self._identity['fingerprint'], **state}
    differences = [f'{key}: {old.get(key)} -> {value}' for key, value in self._identity.items()
                   if old.get(key) != value]  # fmt: skip
    if differences:
      raise ValueError(
        'The data pipeline cannot be continued, as it has changed since the checkpoint '
        f'({"; ".join(differences)}). Restore the former values or start in a new directory.'
      )
    self.close()
    self._taken = int(state['batches'])

  def records(self, number: int, most: int) -> list[str]:
    """Names of the first records, at most so many, in the global batch of this number, counted from 0."""
    return self._examples.names(number, most)

  def close(self) -> None:
    """Stops threads and workers; the next batch starts them again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def _start(self) -> grain.DatasetIterator:
    # A slice, not Grain's own state, which is tied to the number of workers.
    options = grain.ReadOptions(num_threads=self._num_threads, prefetch_buffer_size=self._num_threads)
    dataset = self._dataset[self._taken :].to_iter_dataset(options)
    if self._num_workers:
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own, also where a library user never parsed any
      dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._num_workers))
    return iter(dataset)


def _check(length: int, batch_size: int, repeat: bool, drop_remainder: bool, share: int) -> None:
  if length == 0:
    raise ValueError('The data set has no records.')
  if not repeat and drop_remainder and length < batch_size:
    raise ValueError(f'The data set has {length} records, too few for a single batch of {batch_size}; '
                     'lower batch_size.')  # fmt: skip
  if not repeat and not drop_remainder and share < batch_size:
    raise ValueError('Several processes cannot share a last batch that is not full; set drop_remainder.')
