"""Facts about pictures and captions from which sizes are chosen."""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dalle_jax.data import unreadable
from dalle_jax.data.pictures.image import read_with_traits
from dalle_jax.data.registry import Dataset
from dalle_jax.data.text.caption_text import is_empty

MOST_PICTURES = 256  # pictures that are decoded
MOST_CAPTIONS = 100_000  # captions whose words are counted
_THUMBNAIL = 64  # pixels along a side, for counting colours
_COLOUR_BITS = 4  # of each channel; nearby colours count as one


@dataclasses.dataclass(frozen=True)
class PictureFacts:
  """What is known about the pictures of a data set; the default is a set of flat drawings without captions.

  Attributes:
    pictures: readable pictures, held-out ones included.
    captioned: pictures with a caption.
    side: pixels along the shorter side; the median.
    aspect: longer side over shorter side; the median.
    colours: different colours in a picture, of 4,096; the median.
    words: different words that occur in at least two captions.
    characters: different characters of the captions.
    prefix_share: share of captions whose part before the first colon begins another caption, too.
    largest_prefix: share of captions with the most frequent such part.
  """

  pictures: int
  captioned: int = 0
  side: int = 64
  aspect: float = 1.0
  colours: int = 256
  words: int = 0
  characters: int = 0
  prefix_share: float = 0.0
  largest_prefix: float = 0.0


class Findings(NamedTuple):
  """What `find_facts` returns.

  Attributes:
    facts: the facts.
    captions: up to MOST_CAPTIONS captions.
    reading: seconds in which a core reads and decodes a picture.
  """

  facts: PictureFacts
  captions: list[str]
  reading: float


def find_facts(dataset: Dataset, max_pixels: int, clock: Callable[[], float] = time.perf_counter) -> Findings:
  """The facts about a data set. Some pictures, evenly spread, are decoded.

  Args:
    dataset: pictures, with or without captions.
    max_pixels: the largest number of pixels of a picture.
    clock: returns seconds.

  Raises:
    ValueError: none of the pictures can be decoded.
  """
  sources = [dataset.open(split) for split in dataset.splits]
  total = sum(map(len, sources))
  captions, captioned, asked = [], 0, 0
  for index, source in _spread(sources, total, MOST_CAPTIONS if _knows_captions(sources) else MOST_PICTURES):
    try:
      texts = [text for text in unreadable.captions_of(source, index) if not is_empty(text)]
    except Exception as error:
      if not unreadable.is_unreadable(error):
        raise
      continue
    asked, captioned = asked + 1, captioned + bool(texts)
    captions += texts
  begin = clock()
  tried = [_look(source, index, max_pixels) for index, source in _spread(sources, total, MOST_PICTURES)]
  reading = (clock() - begin) / max(len(tried), 1)
  looks = [look for look in tried if look]
  if not looks:
    raise ValueError('config.data.path: none of the pictures that were tried can be decoded.')
  sides, aspects, colours = zip(*looks, strict=True)
  words, characters = _words(captions)
  prefix_share, largest_prefix = prefixes(captions)
  facts = PictureFacts(
    pictures=total, captioned=round(total * captioned / max(asked, 1)), side=round(statistics.median(sides)),
    aspect=round(statistics.median(aspects), 3), colours=round(statistics.median(colours)), words=words,
    characters=characters, prefix_share=prefix_share, largest_prefix=largest_prefix,
  )  # fmt: skip
  return Findings(facts, captions, reading)


def prefixes(captions: list[str], separator: str = ':') -> tuple[float, float]:
  """See `PictureFacts.prefix_share` and `largest_prefix`."""
  counts = collections.Counter(text.partition(separator)[0].strip().lower() for text in captions)
  shared = sum(counts[text.partition(separator)[0].strip().lower()] > 1 for text in captions if separator in text)
  total = max(len(captions), 1)
  return round(shared / total, 3), round(max(counts.values(), default=0) / total, 3)


def _words(captions: list[str]) -> tuple[int, int]:
  """The number of different words that occur in several captions, and of different characters."""
  counts: collections.Counter[str] = collections.Counter()
  characters: set[str] = set()
  for text in captions:
    words = set(text.lower().split())
    counts.update(words)
    characters.update(*words)
  return sum(count > 1 for count in counts.values()), len(characters)


def _knows_captions(sources: list[Any]) -> bool:
  """Whether captions are known without reading pictures."""
  return all(hasattr(source, 'captions') for source in sources)


def _spread(sources: list[Any], total: int, most: int) -> Iterator[tuple[int, Any]]:
  """Up to `most` records of several sources, evenly spread: the index of each, and its source."""
  count, start, number = min(most, total), 0, 0
  for i in range(count):
    position = i * total // count
    while position - start >= len(sources[number]):
      start, number = start + len(sources[number]), number + 1
    yield position - start, sources[number]


def _look(source: Any, index: int, max_pixels: int) -> tuple[int, float, int] | None:
  """The shorter side, the aspect and the number of colours of a picture; None if it cannot be read."""
  try:
    picture, _, _ = read_with_traits(source[index]['image'], max_pixels)
  except Exception as error:
    if isinstance(error, ValueError) or unreadable.is_unreadable(error):
      return None
    raise
  short, long = sorted(picture.size)
  small = picture.resize((min(short, _THUMBNAIL),) * 2, Image.Resampling.NEAREST)
  channels = np.asarray(small, np.int64) >> (8 - _COLOUR_BITS)
  codes = channels @ (1 << (_COLOUR_BITS * np.arange(3)))
  return short, long / short, len(np.unique(codes))
