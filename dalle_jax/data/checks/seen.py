"""Find held-out records that also occur in training, by the contents of their images and captions.

Images are compared as the models see them before augmentation: cropped at the centre and resized. Captions are compared
without case, spacing and a final full stop.
"""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from dalle_jax.config import DataConfig
from dalle_jax.data import readers
from dalle_jax.data.unreadable import is_unreadable

if TYPE_CHECKING:  # `batches` imports Grain, which takes a second
  from dalle_jax.data.batches import Source

NONE = 0  # digest of an empty caption, and of both parts of a record that cannot be read; it matches no other
_CHUNK = 512  # records between two calls of `progress`


@dataclasses.dataclass(frozen=True)
class Overlap:
  """How much of a held-out split also occurs in training."""

  split: str
  total: int  # records of the split that were compared
  split_size: int  # records of the split
  images: int  # compared records whose image also occurs in training
  captions: int  # compared records whose caption also occurs in training
  left_out: int  # compared records that reports leave out
  num_compared: int  # training records that they were compared with
  num_train: int  # training records

  def describe(self) -> str:
    """One or two sentences for reports."""
    if self.num_compared < self.num_train or self.total < self.split_size:
      limit = (
        f' Only the first {self.num_compared:,} of {self.num_train:,} training records and the first {self.total:,} of '
        f'{self.split_size:,} held-out records were compared; config.evaluation.num_compared is the limit.'
      )
    else:
      limit = ''
    return (
      f'{self.split}: the images of {self.images:,} of {self.total:,} records and the captions of {self.captions:,} '
      f'also occur in training. {self.left_out:,} records are left out of all figures.{limit}{self._remark()}'
    )

  def _remark(self) -> str:
    if self.captions and self.left_out < self.captions:
      return ' Records with a caption from training were kept, because the model reads no captions or no other remain.'
    return ''


def normalized(caption: str) -> str:
  """A caption without the differences that do not count: case, spacing, Unicode forms and a final full stop."""
  return ' '.join(unicodedata.normalize('NFKC', caption).casefold().split()).rstrip('. ')


def digests(config: DataConfig, source: 'Source', count: int, progress: Callable[[int], None]) -> np.ndarray:
  """Hash the images and captions of the first `count` records: uint64 [count, 1 + C], the image first.

  C is the largest number of captions of a record. Records with fewer have NONE in the other places.

  Args:
    config: the configuration of the data; names the image size, the resampling and the number of threads.
    source: the records.
    count: the number of records, at most len(source).
    progress: called with the number of records that are done.
  """
  from dalle_jax.data.batches import Preprocess

  transform = Preprocess(image_size=config.image_size, resampling=config.resampling, max_pixels=config.max_image_pixels)
  generator = np.random.default_rng(0)  # unused, because the crop is central and images are not flipped

  def of(index: int) -> list[int]:
    try:
      record = source[index]
      image = transform(record, generator)['image']
    except Exception as error:
      if not is_unreadable(error):
        raise
      return [NONE, NONE]  # the code that uses the record reports it
    captions = map(normalized, record.get('captions', (record['caption'],)))
    own = [_hash(caption.encode()) if caption else NONE for caption in captions]
    return [_hash(f'{image.shape}'.encode() + image.tobytes()), *own]

  hashes: list[list[int]] = []
  with ThreadPoolExecutor(readers.num_threads(config)) as pool:
    for begin in range(0, count, _CHUNK):
      hashes += pool.map(of, range(begin, min(begin + _CHUNK, count)))
      progress(len(hashes))
  width = max(map(len, hashes), default=2)
  return np.array([row + [NONE] * (width - len(row)) for row in hashes], np.uint64).reshape(count, width)


def _hash(content: bytes) -> int:
  return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), 'big') or 1


def compare(
  split: str, held_out: np.ndarray, train: np.ndarray, sizes: tuple[int, int], reads_captions: bool
) -> tuple[list[int], Overlap]:
  """Return the records of a held-out split that are new, and how many are not.

  A record is new if neither its image nor one of its captions occurs in training. Captions do not matter if the models
  read none, or if no record would remain, as for class labels.

  Args:
    split: the name of the split.
    held_out: digests of its records, uint64 [N, 1 + C].
    train: digests of training records, uint64 [M, 1 + D].
    sizes: the numbers of records of the split and of training, of which the digests may be the first.
    reads_captions: whether the models read captions.
  """
  parts = [(held_out[:, :1], train[:, :1]), (held_out[:, 1:], train[:, 1:])]
  is_seen = np.stack([(np.isin(own, others) & (own != NONE)).any(1) for own, others in parts], 1)
  is_new = ~is_seen[:, 0]
  if reads_captions and (is_new & ~is_seen[:, 1]).any():
    is_new &= ~is_seen[:, 1]
  images, captions = (int(number) for number in is_seen.sum(0))
  overlap = Overlap(
    split, len(held_out), sizes[0], images, captions, int((~is_new).sum()), len(train), sizes[1]
  )  # fmt: skip
  return np.flatnonzero(is_new).tolist(), overlap
