"""Records that cannot be read or decoded: which errors mean that, how they are named, and views without them."""

import errno
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from dalle_jax.files import reason, shown

MOST_NAMED = 5  # bad or lost records that a message names
# The process or the machine is short of something. Another record would fail too, so these errors end the run.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Records(Protocol):
  """Random access to records."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Any: ...


class UnreadableError(ValueError):
  """Too many records cannot be read: no readable one was found as a replacement."""


def is_unreadable(error: Exception) -> bool:
  """Whether an error while reading or decoding a record means that this record is bad.

  Decoders, array_record and TFDS raise many types. A lack of memory or of file handles is no property of a record.
  """
  if isinstance(error, MemoryError):
    return False
  return not (isinstance(error, OSError) and error.errno in _SHORTAGES)


def first_line(value: Any) -> str:
  """The first line of a name or an error, for a message."""
  text = reason(value) if isinstance(value, OSError) else str(value)
  return shown(text.strip().partition('\n')[0] or type(value).__name__)


def name_of(source: Records, index: int) -> str:
  """The name of a record, readable or not: its file, its key, or 'record INDEX'."""
  name = getattr(source, 'name', None)
  if name is not None:
    return shown(name(index))
  try:
    return shown(source[index].get('key', f'record {index}'))
  except Exception:  # any type, see `is_unreadable`
    return f'record {index}'


def problem(source: Records, index: int, error: Exception) -> str:
  """'NAME: REASON' for a record that cannot be read. Some errors name the record themselves."""
  name = name_of(source, index)
  return f'{name}: {first_line(error).removeprefix(f"{name}: ")}'


def most_bad(num_records: int, share: float) -> int:
  """How many of `num_records` records may be bad: the share, rounded down, but at least 1 unless the share is 0."""
  return max(math.floor(share * num_records + 1e-9), 1 if share > 0 else 0)


def captions(source: Records, most: int | None = None) -> Iterator[str]:
  """Yield all captions of the first `most` records (None: all), without those of records that cannot be read."""
  for index in range(len(source) if most is None else min(most, len(source))):
    try:
      texts = captions_of(source, index)
    except Exception as error:
      if not is_unreadable(error):
        raise
      continue
    yield from texts


def captions_of(source: Records, index: int) -> Sequence[str]:
  """All captions of a record; [''] if it has none.

  A source whose captions are known without reading an image has a method `captions(index)`.
  """
  known = getattr(source, 'captions', None)
  if known is not None:
    return known(index) or ['']
  record = source[index]
  return record.get('captions', [record['caption']])


class Readable:
  """A view of the first records of a source, without some of them: unreadable ones or repeated ones. Picklable."""

  def __init__(self, source: Records, left_out: Iterable[int] = (), most: int | None = None) -> None:
    """
    Args:
      source: the records.
      left_out: indices of the records to leave out.
      most: how many records of the source to look at; None for all.
    """
    self._source, self.left_out = source, frozenset(left_out)
    count = len(source) if most is None else min(most, len(source))
    self.indices = [i for i in range(count) if i not in self.left_out]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Any:
    return self._source[self.indices[index]]

  def name(self, index: int) -> str:
    return name_of(self._source, self.indices[index])


def readable(source: Records, read: Callable[[Any], Any], most: int | None = None) -> tuple[Readable, list[str]]:
  """Read the first `most` records (None: all), and leave out those that cannot be read or decoded.

  Args:
    source: the records.
    read: decodes a record, and raises an error if that is impossible.
    most: how many records to look at.

  Returns:
    A view of the readable records, and 'NAME: REASON' for each unreadable record.
  """
  problems: dict[int, str] = {}
  for index in range(len(source) if most is None else min(most, len(source))):
    try:
      read(source[index])
    except Exception as error:
      if not is_unreadable(error):
        raise
      problems[index] = problem(source, index, error)
  return Readable(source, problems, most), list(problems.values())
