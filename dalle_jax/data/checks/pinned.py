"""The list of records that a run began with, kept so that a run continues after some of its files broke.

The position of a run in its data means something only for the list of records that it began with. A later start checks
the files anew. If it finds fewer records but no other ones, the run keeps its list, and training replaces the records
that are gone. Any other change is another data set. A run that accepts it (--allow_other_data) keeps its list from then
on.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

from dalle_jax.data.sources.entries import Entry
from dalle_jax.data.unreadable import MOST_NAMED, first_line, most_bad
from dalle_jax.files import shown, write_whole


class Described(NamedTuple):
  """A record, and what its image was when the list was made.

  Attributes:
    entry: the record.
    digest: SHA-256 of the image file; '' if it is unknown.
  """

  entry: Entry
  digest: str


class RecordLists(NamedTuple):
  """The records of a data set.

  Attributes:
    lists: the records of each split.
    fingerprint: the fingerprint of the data set.
  """

  lists: dict[str, list[Described]]
  fingerprint: str


def described(entries: Sequence[Entry], digests: Sequence[str]) -> list[Described]:
  """Pair records with the digests of their images. `digests` is empty if they are unknown."""
  return [Described(*pair) for pair in zip(entries, digests or [''] * len(entries), strict=True)]


def keep(old: RecordLists, fresh: RecordLists, max_bad_share: float) -> RecordLists:
  """The records of a run: those that it began with if nothing but losses happened since, or else `fresh`.

  Args:
    old: the records that the run began with, from `first`.
    fresh: the records found now.
    max_bad_share: share of records that may be lost, see `unreadable.most_bad`.

  Raises:
    ValueError: too many records are lost.
  """
  found, known = set(itertools.chain(*fresh.lists.values())), set(itertools.chain(*old.lists.values()))
  if found >= known or not found <= known:
    return fresh
  lost = [record for records in old.lists.values() for record in records if record not in found]
  limit = most_bad(len(known), max_bad_share)
  named = ', '.join(shown(record.entry.path) for record in lost[:MOST_NAMED]) + (
    ', ...' if len(lost) > MOST_NAMED else ''
  )
  problem = f'{len(lost)} of the {len(known)} records that the run began with are missing or cannot be read ({named})'
  if len(lost) > limit:
    raise ValueError(
      f'{problem}; at most {limit} may be. Mend the data, or raise config.data.max_bad_share, which is '
      f'{max_bad_share:g}. Then run the same command again to continue.'
    )
  logging.warning('%s. Other records take their places in training.', problem)
  return old


def first(file: Path, fresh: RecordLists, began: bool, is_main: bool = True) -> RecordLists:
  """The stored records of a run that has begun to train; otherwise stores and returns `fresh`.

  Args:
    file: where the records are kept.
    fresh: the records found now.
    began: whether the run has begun to train.
    is_main: whether this process may write `file`.

  Raises:
    ValueError: `file` is damaged.
  """
  old = _read(file) if began else None
  if old is not None:
    return old
  if is_main:
    write(file, fresh)
  return fresh


def _read(file: Path) -> RecordLists | None:
  """The records in a file; None if there is none. Raises ValueError if it is damaged."""
  try:
    stored = json.loads(file.read_text(encoding='utf-8'))
    lists = {
      split: [Described(Entry.of_row(entry), str(digest)) for entry, digest in records]
      for split, records in stored['lists'].items()
    }
    return RecordLists(lists, str(stored['fingerprint']))
  except FileNotFoundError:
    return None
  except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
    raise ValueError(
      f'{file} is damaged or cannot be read: {first_line(error)}. Restore it from a copy, or remove it to go on with '
      'the records that are found now; the run is refused later if they are other data.'
    ) from error


def write(file: Path, records: RecordLists) -> None:
  """Store the records of a run."""
  lists = {split: [[record.entry.row(), record.digest] for record in rows] for split, rows in records.lists.items()}
  write_whole(file, json.dumps({'lists': lists, 'fingerprint': records.fingerprint}).encode())
