"""Shuffled, preprocessed batches from a source of records, with exact resume.

The seed and the position in the stream determine each example completely: which record it comes from, and which random
numbers its augmentation uses. The stream is therefore the same for any number of threads, worker processes and hosts.
Its state is a single number: how many batches have been read. Grain runs the reading threads and processes.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags, logging

from dalle_jax.data import fingerprints
from dalle_jax.data.pictures import image as image_lib
from dalle_jax.data.pictures.crops import fit, smallest_side
from dalle_jax.data.text.tokenizer import Tokenizer, pad
from dalle_jax.data.text.wrong_captions import WrongCaptions
from dalle_jax.data.unreadable import MOST_NAMED, UnreadableError, first_line, is_unreadable, most_bad, name_of

Record = dict[str, Any]
Transform = Callable[[Record, np.random.Generator], dict[str, np.ndarray]]
MOST_BATCHES = 2**40  # length of an endless stream; its number of examples must fit into 63 bits
ATTEMPTS = 64  # records tried for one row of a batch
_FAILED = '_failed'  # field of a row from the reading process: number of records that could not be read


class Source(Protocol):
  """Picklable random access to records {'image': encoded bytes, 'caption': str, 'key': str}.

  A record with several captions also has 'captions', a sequence of them. A source may have a method
  `order(seed, shuffle)`, which returns the endless order of its records as a Grain data set of indices.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


class Preprocess:
  """The transform from a record to the arrays that a model reads: {'image': ..., 'text': ...}. Picklable."""

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
    max_pixels: int = image_lib.MAX_PIXELS,
  ):
    """Configures the transform.

    Args:
      image_size: height and width of the output in pixels.
      crop: one of `crops.CROPS`.
      flip: whether to mirror half of the images, chosen at random.
      tokenizer: encodes the captions. Without one the output has no 'text'.
      text_length: text slots of the model, including the start-of-text slot.
      bpe_dropout: probability of skipping each BPE merge.
      resampling: one of `crops.RESAMPLINGS`.
      wrong_captions: makes a hard negative for each caption, returned as 'wrong'. Needs a tokenizer.
      max_pixels: the largest number of pixels of an image file.
    """
    self._image_size = image_size
    self._crop = crop
    self._resampling = resampling
    self._flip = flip
    self._tokenizer = tokenizer
    self._bpe_dropout = bpe_dropout
    self._wrong_captions = wrong_captions
    self._max_pixels = max_pixels
    self._smallest = smallest_side(image_size, crop, resampling)
    self._num_tokens = text_length - 1  # the model itself fills the first slot with the start-of-text token
    self.num_truncated = 0  # captions that this process has truncated so far

  def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Decodes, crops and tokenizes one record.

    Args:
      record: see `Source`.
      rng: source of the random crop, flip, BPE dropout and wrong caption.

    Returns:
      'image' uint8 [image_size, image_size, 3]. With a tokenizer also 'text' int32 [text_length - 1], padded with 0.
      With `wrong_captions` also 'wrong', which holds the tokens of the wrong caption in the same form as 'text'.

    Raises:
      ValueError: the image cannot be decoded; the message names the record.
    """
    try:
      image = image_lib.decode(record['image'], self._max_pixels, self._smallest)
    except ValueError as error:
      raise ValueError(f'{record["key"]}: {error}') from error
    image = fit(image, self._image_size, self._crop, rng, self._resampling)
    if self._flip and rng.random() < 0.5:
      image = image[:, ::-1]
    if self._tokenizer is None:
      return {'image': image}
    captions = record.get('captions', ())
    if len(captions) > 1:
      record = {**record, 'caption': captions[rng.integers(len(captions))]}
    example = {'image': image, 'text': self._tokens(self._tokenizer, record, rng)}
    if self._wrong_captions:
      wrong = {**record, 'caption': self._wrong_captions(record['caption'], rng)}
      example['wrong'] = self._tokens(self._tokenizer, wrong, rng)
    return example

  def _tokens(self, tokenizer: Tokenizer, record: Record, rng: np.random.Generator) -> np.ndarray:
    ids = tokenizer.encode(record['caption'])
    if self._bpe_dropout:
      # Dropout makes captions longer. Use it only if the result still fits, so that it never causes truncation.
      dropout_ids = tokenizer.encode_with_dropout(record['caption'], self._bpe_dropout, rng)
      ids = dropout_ids if len(dropout_ids) <= self._num_tokens else ids
    if len(ids) > self._num_tokens:
      if self.num_truncated == 0:
        logging.warning(
          'The caption of %s has %d tokens and is cut to %d. Further long captions are cut without a warning. To keep '
          'more tokens, raise config.tokenizer.text_length.', record['key'], len(ids), self._num_tokens,
        )  # fmt: skip
      self.num_truncated += 1
    return pad(ids, self._num_tokens)


class _Examples:
  """Random access to the examples that one process reads: its rows of batch 0, then its rows of batch 1, and so on."""

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
    self._own_order = getattr(source, 'order', None)
    if self._own_order is not None:
      self._order = self._own_order(seed, shuffle)
    else:
      order = grain.MapDataset.range(len(source))
      # Grain's `repeat` makes `shuffle` use a different order in each epoch.
      self._order = (order.seed(seed).shuffle() if shuffle else order).repeat(None)
    self._reasons: dict[int, str] = {}  # why records could not be read, by index, in this process

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    batch, row = divmod(index, len(self._rows))
    example, failed = self._read(batch * self._batch_size + self._rows[row])
    return {**example, _FAILED: np.asarray(failed, np.int32)}

  def record_index(self, position: int, attempt: int) -> int:
    """The record that is tried for a position of the stream: the stream's own first, then others at random."""
    if attempt == 0:
      return int(self._order[position])
    return int(self._generator(position, attempt).integers(len(self._source)))

  def name(self, index: int) -> str:
    """The name of a record."""
    return name_of(self._source, index)

  def reason(self, index: int) -> str:
    """Why a record could not be read, on one line. If another process read it, this one tries to read it again."""
    if index not in self._reasons:
      try:
        self._transform(self._source[index], np.random.default_rng(0))
      except Exception as error:  # any type, see `is_unreadable`
        return first_line(error)
      return 'it could be read when it was tried again'
    return self._reasons[index]

  def names(self, batch: int, most: int) -> list[str]:
    """Names of up to `most` records at the start of a global batch, with the replacements of bad records."""
    first = batch * self._batch_size
    positions = range(first, first + min(most, self._batch_size))
    return [self.name(self.record_index(position, self._read(position)[1])) for position in positions]

  def _read(self, position: int) -> tuple[dict[str, np.ndarray], int]:
    """The example at a position of the stream, and how many records before it could not be read.

    Raises:
      UnreadableError: none of ATTEMPTS records can be read.
    """
    index = -1
    for attempt in range(ATTEMPTS):
      index = self.record_index(position, attempt)
      try:
        return self._transform(self._source[index], self._augmentation(position, attempt, index)), attempt
      except Exception as error:
        if not is_unreadable(error):
          raise
        self._reasons.setdefault(index, first_line(error))
    raise UnreadableError(
      f'None of {ATTEMPTS} records that were tried for one row of a batch can be read. The last one was '
      f'{self.name(index)}: {self._reasons[index]}.'
    )

  def _augmentation(self, position: int, attempt: int, index: int) -> np.random.Generator:
    if attempt:
      generator = self._generator(position, attempt)
      generator.integers(len(self._source))  # the number that chose the record
      return generator
    # With an order of its own, a source may repeat a record several times in a stretch of its length.
    turn = position if self._own_order is not None else position // len(self._source)
    return np.random.default_rng([self._seed, turn, index])

  def _generator(self, position: int, attempt: int) -> np.random.Generator:
    """Source of the choice of a replacement and of its augmentation; `attempt` is 1 or more."""
    return np.random.default_rng([self._seed, position // len(self._source), position, attempt])


class Batches:
  """Iterator over batches: dicts of numpy arrays with a leading batch axis.

  With several processes (hosts), each process yields its own rows of every global batch. The global batches are the
  same as with a single process.
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
    max_bad_share: float = 0.0,
    held_out: bool = False,
  ):
    """Prepares the stream; reading starts when the first batch is requested.

    Args:
      source: the records; see `Source`.
      transform: (record, generator) -> dict of arrays, with the same shapes for all records. Must be picklable if
        `num_workers` is not 0.
      batch_size: examples per global batch, summed over all processes.
      seed: seed of the record order and of the augmentation, 0 or more.
      shuffle: True: a new random order in each epoch. False: the source's order.
      repeat: True: an endless stream, in which a batch may contain the end of one epoch and the start of the next.
        False: one pass.
      drop_remainder: whether a single pass drops its last batch if that batch is not full.
      rows: the rows of every global batch that this process reads (`sharding.own_rows`). None: all rows.
      num_workers: number of reading processes. 0: read in threads of this process.
      num_threads: reading threads in each process.
      fingerprint: hash of the data set. `restore` refuses a state with another fingerprint.
      max_bad_share: share of records that may be unreadable, see `most_bad`.
      held_out: says in the log that an unreadable record is left out, which the caller then does: see `bad_indices`.

    Raises:
      ValueError: there are no records, a single pass has less than one batch, or a partial last batch would have to be
        shared between processes.
    """
    rows = range(batch_size) if rows is None else tuple(rows)
    num_rows = len(rows)
    _check(len(source), batch_size, repeat, drop_remainder, num_rows)
    if repeat:
      length = min(MOST_BATCHES, sys.maxsize // (2 * batch_size)) * num_rows
    else:
      length = len(source) // batch_size * num_rows if drop_remainder else len(source)
    examples = _Examples(source, transform, seed, shuffle, rows, batch_size, length)
    self._examples = examples
    self._dataset = grain.MapDataset.source(examples).batch(num_rows, drop_remainder=False)
    self._num_workers, self._num_threads = num_workers, num_threads
    self._identity = {'dataset_length': len(source), 'seed': seed, 'batch_size': batch_size, 'shuffle': shuffle,
                      'fingerprint': fingerprint}  # fmt: skip
    self._rows, self._batch_size, self._num_records = rows, batch_size, len(source)
    self._max_bad_share = max_bad_share
    self._held_out = held_out
    self._bad_names: dict[int, str] = {}
    self._replaced = np.zeros(num_rows, bool)
    self._taken = 0
    self._iterator: grain.DatasetIterator | None = None

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._iterator is None:
      self._iterator = self._start()
    batch = next(self._iterator)
    failed = batch.pop(_FAILED)
    self._replaced = failed > 0
    for row in np.flatnonzero(failed):
      self._report(self._taken * self._batch_size + self._rows[row], failed[row])
    self._taken += 1
    return batch

  def _report(self, position: int, failed: int) -> None:
    """Log the names of the unreadable records at a position. Each record is logged once."""
    for index in (self._examples.record_index(position, attempt) for attempt in range(failed)):
      if index not in self._bad_names:
        self._bad_names[index] = name = self._examples.name(index)
        logging.warning(
          'Cannot read %s: %s. %s', name, self._examples.reason(index).removeprefix(f'{name}: '),
          'It is left out of the figures.' if self._held_out else 'Another record takes its place.',
        )  # fmt: skip

  def replaced(self) -> np.ndarray:
    """Whether each of this process's rows of the last batch holds another record than the stream names, bool [rows].

    A record that cannot be read or decoded is replaced. The seed, the epoch, the position in the stream and the number
    of attempts alone choose the other record.
    """
    return self._replaced

  def bad_names(self) -> list[str]:
    """The names of the first few unreadable records that this process has met."""
    return list(self._bad_names.values())[:MOST_NAMED]

  @property
  def bad_indices(self) -> frozenset[int]:
    """The indices of the unreadable records that this process has met."""
    return frozenset(self._bad_names)

  def most_replaced(self, num_batches: int) -> int:
    """How many rows of `num_batches` batches may be replaced: `most_bad` for each epoch that they touch."""
    epochs = -(-num_batches * self._batch_size // self._num_records)
    return most_bad(self._num_records, self._max_bad_share) * epochs

  def state(self) -> dict[str, Any]:
    """The position in the stream as a JSON-serializable dict.

    It does not depend on the number of threads, workers or processes, so these may change when a run resumes.
    """
    return {'batches': self._taken, **self._identity}

  def restore(self, state: dict[str, Any]) -> None:
    """Moves the stream to the position that `state` describes.

    Raises:
      ValueError: the state belongs to another data set, order, seed or batch size.
    """
    # States written by the first version have no fingerprint.
    old = {'fingerprint': self._identity['fingerprint'], **state}
    if fingerprints.same(str(old['fingerprint']), str(self._identity['fingerprint'])):
      old['fingerprint'] = self._identity['fingerprint']
    differences = [f'{key}: {old.get(key)} -> {value}' for key, value in self._identity.items()
                   if old.get(key) != value]  # fmt: skip
    if differences:
      raise ValueError(
        'The data pipeline cannot resume because it has changed since the checkpoint '
        f'({"; ".join(differences)}). Set the former values again, or start in a new work directory.'
      )
    self.close()
    self._taken = int(state['batches'])

  def records(self, number: int, most: int) -> list[str]:
    """Names of the records in a global batch, for error messages.

    Args:
      number: index of the global batch, counted from 0.
      most: how many names to return at most, from the start of the batch.
    """
    return self._examples.names(number, most)

  def close(self) -> None:
    """Stops the reading threads and processes. The next request for a batch starts them again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def _start(self) -> grain.DatasetIterator:
    # Grain's own iterator state depends on the number of workers. Slicing the data set does not.
    options = grain.ReadOptions(num_threads=self._num_threads, prefetch_buffer_size=self._num_threads)
    dataset = self._dataset[self._taken :].to_iter_dataset(options)
    if self._num_workers:
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its absl flags, which fails if a library user never parsed flags
      dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._num_workers))
    return iter(dataset)


def _check(length: int, batch_size: int, repeat: bool, drop_remainder: bool, num_rows: int) -> None:
  if length == 0:
    raise ValueError('The data set has no records.')
  if not repeat and drop_remainder and length < batch_size:
    raise ValueError(f'The data set has {length} records, too few for a single batch of {batch_size}; '
                     'lower batch_size.')  # fmt: skip
  if not repeat and not drop_remainder and num_rows < batch_size:
    raise ValueError('Several processes cannot share a last batch that is not full; set drop_remainder=True.')
