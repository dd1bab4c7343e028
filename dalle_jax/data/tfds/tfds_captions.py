"""Counts the captions of a TFDS data set, so that its account says how many examples have an empty caption.

All captions are read once. The counts are kept in a file, which may be deleted at any time.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dalle_jax.data.account import Account, Tally
from dalle_jax.data.text.caption_text import is_empty
from dalle_jax.data.tfds.tfds_source import TfdsSource
from dalle_jax.data.unreadable import first_line
from dalle_jax.files import write_json

_NUM_THREADS = 8
_CHUNK = 1_000  # examples between two calls of `progress`
_EMPTY = 'used with an empty caption'
_SEVERAL = 'with several captions; each epoch uses one of them, chosen at random'
_UNREADABLE = 'cannot be read, so that other examples take their places'


def count_captions(
  sources: dict[str, TfdsSource], identity: Any, directory: Path, progress: Callable[[int, int], None] | None = None
) -> Account:
  """Count the captions of all splits.

  Args:
    sources: the source of each split.
    identity: a JSON value that changes if the data set does.
    directory: keeps the counts for later starts.
    progress: called with (examples read, number of examples), unless the counts were kept.
  """
  file = directory / 'checked' / f'tfds_{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.json'
  account = _kept(file)
  if account is None:
    account = _count(sources, progress)
    try:
      content = {'used': account.used, 'left_out': _listed(account.left_out), 'notes': _listed(account.notes)}
      write_json(file, {'content': content, 'checksum': _checksum(content)})
    except OSError:
      pass  # counted again at the next start
  return account


def _count(sources: dict[str, TfdsSource], progress: Callable[[int, int], None] | None) -> Account:
  account, total, done = Account('examples'), sum(map(len, sources.values())), 0
  with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    try:
      for split, source in sources.items():
        for start in range(0, len(source), _CHUNK):
          indices = range(start, min(start + _CHUNK, len(source)))
          for index, captions in zip(indices, pool.map(lambda i, s=source: _captions(s, i), indices), strict=True):
            _add(account, captions, f'{split} {index}')
          done += len(indices)
          if progress:
            progress(done, total)
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
  return account


def _captions(source: TfdsSource, index: int) -> list[str] | Exception:
  try:
    return source.texts(index)
  except Exception as error:  # readers of records raise errors of many types
    return error


def _add(account: Account, captions: list[str] | Exception, name: str) -> None:
  if isinstance(captions, Exception):
    # The text in brackets differs from record to record: array_record gives hashes there.
    account.leave_out(f'{_UNREADABLE}: {first_line(captions).partition(" (")[0]}', name)
    return
  account.used += 1
  num_full = sum(not is_empty(caption) for caption in captions)
  if not num_full:
    account.note(_EMPTY, name)
  elif num_full > 1:
    account.note(_SEVERAL, name)


def _listed(tallies: dict[str, Tally]) -> list[dict[str, Any]]:
  return [dataclasses.asdict(tally) for tally in tallies.values()]


def _kept(file: Path) -> Account | None:
  """The counts in a file; None if it is missing or damaged."""
  try:
    stored = json.loads(file.read_bytes())
    content = stored['content']
    if stored['checksum'] != _checksum(content):
      return None
    account = Account('examples')
    account.used = content['used']
    for tallies, name in ((account.left_out, 'left_out'), (account.notes, 'notes')):
      tallies.update({tally['reason']: Tally(**tally) for tally in content[name]})
    return account
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None


def _checksum(content: Any) -> int:
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())
