"""Folders of tar files with pictures and captions: which pictures there are, and random access to them.

The path of a picture is `SHARD.tar/MEMBER`. The pictures are sorted by their members' names, as the files of a folder
with the same contents would be.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dalle_jax.data.account import Account
from dalle_jax.data.pictures.stores import Stamp, check_size
from dalle_jax.data.shards.tar_index import TarIndex, TarPicture, index_of
from dalle_jax.data.sources.entries import Found
from dalle_jax.data.sources.survey import survey
from dalle_jax.files import shown

EXTENSION = '.tar'
_NUM_THREADS = 8


class Place(NamedTuple):
  """Where the bytes of a picture are."""

  shard: str  # the tar file, relative to the folder
  offset: int  # bytes before the contents
  size: int  # bytes


class TarStore:
  """Reads the members of tar files at random."""

  def __init__(self, root: Path, places: dict[str, Place], stamps: dict[str, Stamp]):
    """
    Args:
      root: the folder.
      places: where each picture is, by its path.
      stamps: the stamp of each tar file when it was indexed.
    """
    self._root, self._places, self._stamps = os.fspath(root), places, stamps

  def read(self, path: str, most_bytes: int | None = None) -> tuple[Stamp, bytes]:
    shard, offset, size = self._place(path)
    check_size(size, most_bytes)
    with open(os.path.join(self._root, shard), 'rb', buffering=0) as file:
      if Stamp.of(os.fstat(file.fileno())) != self._stamps[shard]:
        raise OSError(f'{shown(shard)} has changed since the start')
      data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
      raise OSError(f'{shown(path)} ends after {len(data):,} of {size:,} bytes')
    return Stamp(size, self._stamps[shard].mtime_ns), data

  def stamp(self, path: str) -> Stamp:
    shard, _, size = self._place(path)
    return Stamp(size, os.stat(os.path.join(self._root, shard)).st_mtime_ns)

  def _place(self, path: str) -> Place:
    if path not in self._places:
      raise OSError(f'{shown(path)} is in no tar file any more')
    return self._places[path]


def scan(
  root: Path, account: Account, memory: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[TarStore, list[Found]]:
  """Lists the pictures of all tar files below a folder, sorted by key.

  Args:
    root: the folder.
    account: counts the pictures that are left out, with the reasons.
    memory: directory that keeps the indexes of tar files for later starts.
    progress: called with (tar files indexed, tar files to index).

  Raises:
    ValueError: the folder is missing or unreadable, or no tar file can be read.
  """
  found = survey(root)
  shards = [path for path in found.files if path.lower().endswith(EXTENSION)]
  for path, reason in found.barred.items():
    account.note(reason, path)
  for path in found.files:
    if not path.lower().endswith(EXTENSION):
      account.note('a file beside tar files, which is not read', path)
  places: dict[str, Place] = {}
  stamps: dict[str, Stamp] = {}
  pictures: list[Found] = []
  problems = []
  for shard, index in _indexes(root, shards, memory, progress):
    if isinstance(index, str):
      problems.append(f'{shown(shard)} {index}')
      account.note(f'a tar file that {index}', shard)
      continue
    stamps[shard] = index.stamp
    for reason, name in index.left_out:
      account.leave_out(reason, f'{shard}/{name}')
    for fact, name in index.notes:
      account.note(fact, shard if name == os.path.basename(shard) else f'{shard}/{name}')
    for picture in index.pictures:
      _add(shard, picture, places, pictures, account)
  if not stamps:
    raise ValueError(
      f'config.data.path: no tar file in {shown(root)} can be read: {"; ".join(problems[:3]) or "there is none"}.\n'
      f'{account}'
    )
  return TarStore(root, places, stamps), sorted(pictures, key=lambda picture: (picture.key, picture.path))


def _add(shard: str, picture: TarPicture, places: dict[str, Place], pictures: list[Found], account: Account) -> None:
  path = f'{shard}/{picture.name}'
  if path in places:
    account.leave_out('its tar file has another picture of this name before it', path)
    return
  places[path] = Place(shard, picture.offset, picture.size)
  pictures.append(Found(path, picture.name, picture.captions))


def _indexes(
  root: Path, shards: list[str], memory: Path | None, progress: Callable[[int, int], None] | None
) -> list[tuple[str, TarIndex | str]]:
  """The index of each tar file, or why it has none, as the rest of a sentence."""

  def index(shard: str) -> TarIndex | str:
    name = hashlib.sha256(os.fsencode(os.path.realpath(root / shard))).hexdigest()[:16]
    try:
      return index_of(root / shard, memory and memory / f'tar_{name}.json')
    except OSError as error:
      return f'cannot be read: {error.strerror or shown(error)}'
    except ValueError as error:
      return str(error)

  results = []
  with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    for number, pair in enumerate(zip(shards, pool.map(index, shards), strict=True), 1):
      results.append(pair)
      if progress:
        progress(number, len(shards))
  return results
