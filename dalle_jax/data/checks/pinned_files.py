"""The record files that a run on a TFDS data set began with, so that it continues after some of its records broke.

A changed file of the same size in which records cannot be read is damaged; training replaces these records. A changed
file in which all records can be read is another one.
"""

import os

from absl import logging

from dalle_jax.data.checks.pinned import RecordLists, described
from dalle_jax.data.sources.entries import Entry
from dalle_jax.data.tfds.record_files import size_of
from dalle_jax.data.unreadable import MOST_NAMED, is_unreadable, most_bad
from dalle_jax.files import shown


def listed(files: dict[str, int], digests: list[str], fingerprint: str) -> RecordLists:
  """The record files of a data set as a list that a run keeps.

  Args:
    files: the number of records of each file, by its path.
    digests: SHA-256 of each file.
    fingerprint: the fingerprint of the data.
  """
  entries = [Entry(os.path.basename(file), str(size_of(file))) for file in files]
  return RecordLists({'files': described(entries, digests)}, fingerprint)


def keep(old: RecordLists, fresh: RecordLists, files: dict[str, int], listing: str, max_bad_share: float) -> str:
  """The fingerprint of a run's data. It is the one of the first start if the files have only been damaged since.

  Args:
    old: the record files that the run began with, from `pinned.first`.
    fresh: the record files now, from `listed`.
    files: the number of records of each file, by its path.
    listing: the part of the fingerprint that does not depend on contents.
    max_bad_share: share of records that may be damaged, see `unreadable.most_bad`.

  Raises:
    ValueError: too many records are damaged.
  """
  fingerprint = fresh.fingerprint
  if old.fingerprint == fingerprint or not old.fingerprint.endswith(listing):
    return fingerprint
  records = old.lists.get('files', [])
  now = fresh.lists['files']
  if [record.entry for record in records] != [record.entry for record in now]:
    return fingerprint
  changed = [file for file, then, record in zip(files, records, now, strict=True) if then.digest != record.digest]
  damaged = {file: _num_damaged(file) for file in changed}
  if not all(damaged.values()):
    return fingerprint
  count, limit, total = sum(damaged.values()), most_bad(sum(files.values()), max_bad_share), sum(files.values())
  named = ', '.join(shown(os.path.basename(file)) for file in changed[:MOST_NAMED])
  problem = f'{count} of the {total} records that the run began with cannot be read any more (files {named})'
  if count > limit:
    raise ValueError(
      f'{problem}; at most {limit} may be bad. Copy these files again, or raise config.data.max_bad_share, which is '
      f'{max_bad_share:g}. Then run the same command again to continue.'
    )
  logging.warning('%s. Other records take their places in training.', problem)
  return old.fingerprint


def _num_damaged(file: str) -> int:
  """The number of records of a file that cannot be read."""
  from array_record.python.array_record_module import ArrayRecordReader

  reader, count = ArrayRecordReader(file), 0
  for index in range(reader.num_records()):
    try:
      reader.read([index])
    except Exception as error:  # array_record raises many types
      if not is_unreadable(error):
        raise
      count += 1
  reader.close()
  return count
