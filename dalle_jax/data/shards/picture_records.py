"""Pictures and captions in ArrayRecord files, with a manifest: writing, listing, and random access.

A directory has `manifest.json`, and for each shard `pictures-00000.array_record` and `pictures-00000.json`, which lists
the shard's records. `manifest.json` is written last: without it, a directory is unfinished, and writing goes on with
the shards that are missing.
"""

import concurrent.futures
import hashlib
import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dalle_jax.data.account import Account
from dalle_jax.data.pictures.stores import Stamp, check_size
from dalle_jax.data.sources.entries import Found
from dalle_jax.files import parse_json_object, read_json_object, shown, write_json

MANIFEST, PLAN = 'manifest.json', 'plan.json'
_FORMAT = 1
_MAGIC = b'DJP1'  # begins each record, before the length of its JSON header in 4 bytes
_BLOCK = 2**22  # bytes read at once
_MOST_LISTING_BYTES = 2**30
_ADVICE = 'Prepare the data again with tools/prepare_data.py, in an empty directory.'

# Called with (records done, records in total).
Progress = Callable[[int, int], None]


class NewRecord(NamedTuple):
  """A picture to write."""

  key: str  # names the picture; readers sort by it
  captions: list[str] | None  # None if it has none
  read: Callable[[], bytes]  # returns the encoded picture; raises ValueError or OSError if it cannot be used


class Writer:
  """Writes shards, several at once, and goes on where an earlier writer was stopped."""

  def __init__(self, directory: Path, records: Sequence[NewRecord], plan: dict[str, Any], per_shard: int = 10_000):
    """
    Args:
      directory: where to write.
      records: the pictures, in their order.
      plan: a JSON object that identifies the records and how they are changed.
      per_shard: records in a shard.

    Raises:
      ValueError: the directory has the beginning of other data.
    """
    self._directory, self._records, self._per_shard = directory, records, per_shard
    self._plan = {'format': _FORMAT, 'count': len(records), 'per_shard': per_shard, **plan}
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / PLAN
    if file.exists() and (old := read_json_object(file, _ADVICE)) != self._plan:
      different = sorted(key for key in {*old, *self._plan} if old.get(key) != self._plan.get(key))
      raise ValueError(
        f'{shown(directory)} has the beginning of other data ({", ".join(different)} differ). Give another --out, or '
        'remove it.'
      )
    write_json(file, self._plan)

  def run(self, num_threads: int, progress: Progress | None = None) -> dict[str, Any]:
    """Writes the shards that are missing, and the manifest. Returns the manifest.

    Raises:
      OSError: a file cannot be written.
    """
    _remove_partial(self._directory)
    num_shards = -(-len(self._records) // self._per_shard)
    names = [f'pictures-{number:05d}' for number in range(num_shards)]
    shards, done = [], 0
    with concurrent.futures.ThreadPoolExecutor(num_threads) as readers:
      for number, name in enumerate(names):
        records = self._records[number * self._per_shard : (number + 1) * self._per_shard]
        listing = self._finished(name)
        if listing is None:

          def count(part: int, done: int = done) -> None:
            if progress:
              progress(done + part, len(self._records))

          listing = self._write(name, records, readers, count)
        shards.append({'name': name, **{key: listing[key] for key in ('count', 'left_out', 'bytes', 'sha256')}})
        done += len(records)
        if progress:
          progress(done, len(self._records))
    manifest = {
      **self._plan, 'shards': shards, 'written': sum(shard['count'] for shard in shards),
      'left_out': sum(len(shard['left_out']) for shard in shards),
    }  # fmt: skip
    write_json(self._directory / MANIFEST, manifest)
    return manifest

  def _finished(self, name: str) -> dict[str, Any] | None:
    """The listing of a shard that is complete and undamaged; None if it has to be written."""
    file = self._directory / f'{name}.array_record'
    try:
      listing = read_json_object(self._directory / f'{name}.json', max_bytes=_MOST_LISTING_BYTES)
      return listing if _sha256(file) == listing.get('sha256') else None
    except (OSError, ValueError):
      return None

  def _write(
    self, name: str, records: Sequence[NewRecord], readers: concurrent.futures.Executor, count: Callable[[int], None]
  ) -> dict[str, Any]:
    from array_record.python.array_record_module import ArrayRecordWriter

    file = self._directory / f'{name}.array_record'
    partial = file.with_name(f'{file.name}.{os.getpid()}.tmp')
    listed, left_out = [], []
    writer = ArrayRecordWriter(os.fspath(partial), 'group_size:1')
    try:
      for number, (record, image) in enumerate(zip(records, _ahead(readers, records), strict=True), 1):
        if isinstance(image, bytes):
          writer.write(encode(record.key, record.captions, image))
          listed.append([record.key, len(image), record.captions])
        else:
          left_out.append([record.key, shown(image)])
        count(number)
    except BaseException:
      writer.close()
      partial.unlink(missing_ok=True)
      raise
    writer.close()
    listing = {
      'count': len(listed), 'left_out': left_out, 'bytes': partial.stat().st_size, 'sha256': _sha256(partial),
      'records': listed,
    }  # fmt: skip
    os.replace(partial, file)
    write_json(self._directory / f'{name}.json', listing)
    return listing


def _remove_partial(directory: Path) -> None:
  """Removes the unfinished files of writers that were killed."""
  for file in directory.glob('pictures-*.array_record.*.tmp'):
    try:
      os.kill(int(file.name.split('.')[-2]), 0)
    except (ProcessLookupError, ValueError):
      file.unlink(missing_ok=True)
    except OSError:
      pass  # a process of another user


def is_begun(directory: Path, plan: dict[str, Any]) -> bool:
  """Whether an earlier writer with this plan was stopped before it had finished a directory."""
  try:
    old = read_json_object(directory / PLAN)
  except (OSError, ValueError):
    return False
  return not (directory / MANIFEST).exists() and all(old.get(key) == value for key, value in plan.items())


def _ahead(readers: concurrent.futures.Executor, records: Sequence[NewRecord], window: int = 64) -> Any:
  """Yields the picture of each record, or the error, in order; reads some records ahead in threads."""

  def read(record: NewRecord) -> bytes | Exception:
    try:
      return record.read()
    except (ValueError, OSError) as error:
      return error

  pending = [readers.submit(read, record) for record in records[:window]]
  for number in range(len(records)):
    result = pending[number].result()
    pending[number] = None  # type: ignore[call-overload]
    if number + window < len(records):
      pending.append(readers.submit(read, records[number + window]))
    yield result


def encode(key: str, captions: list[str] | None, image: bytes) -> bytes:
  """The bytes of a record."""
  header = json.dumps({'key': key, 'captions': captions}).encode()
  return _MAGIC + struct.pack('<I', len(header)) + header + image


def decode(data: bytes) -> tuple[str, list[str] | None, bytes]:
  """The key, the captions and the encoded picture of a record.

  Raises:
    ValueError: the bytes are not such a record.
  """
  if not data.startswith(_MAGIC) or len(data) < 8:
    raise ValueError('it is not a record of pictures and captions')
  end = 8 + struct.unpack_from('<I', data, 4)[0]
  if end > len(data):
    raise ValueError('the record is cut')
  header = parse_json_object(data[8:end])
  key, captions = header.get('key'), header.get('captions')
  if not isinstance(key, str) or not _are_captions(captions):
    raise ValueError('the header of the record is damaged')
  return key, captions, data[end:]


def _are_captions(value: Any) -> bool:
  return value is None or (isinstance(value, list) and all(isinstance(text, str) for text in value))


class _Place(NamedTuple):
  shard: str
  number: int  # of the record within the shard
  size: int


class RecordStore:
  """Reads the pictures of shards at random."""

  def __init__(self, root: Path, places: dict[str, _Place]):
    """
    Args:
      root: the directory.
      places: where each picture is, by its key.
    """
    self._root, self._places = os.fspath(root), places
    self._readers: dict[str, Any] = {}

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_readers': {}}  # readers cannot be copied to other processes

  def read(self, path: str, most_bytes: int | None = None) -> tuple[Stamp, bytes]:
    shard, number, size = self._place(path)
    check_size(size, most_bytes)
    try:
      key, _, image = decode(self._reader(shard).read([number])[0])
    except Exception as error:  # array_record raises many types
      raise OSError(f'{shard}.array_record, record {number} cannot be read: {shown(error, 100)}') from error
    if key != path or len(image) != size:
      raise OSError(f'{shard}.array_record, record {number} is not {shown(path, 60)}')
    return self.stamp(path), image

  def stamp(self, path: str) -> Stamp:
    shard, _, size = self._place(path)
    return Stamp(size, os.stat(self._file(shard)).st_mtime_ns)

  def _place(self, path: str) -> _Place:
    if path not in self._places:
      raise OSError(f'{shown(path)} is in no shard any more')
    return self._places[path]

  def _file(self, shard: str) -> str:
    return os.path.join(self._root, f'{shard}.array_record')

  def _reader(self, shard: str) -> Any:
    if shard not in self._readers:
      from array_record.python.array_record_module import ArrayRecordReader

      self._readers[shard] = ArrayRecordReader(self._file(shard))
    return self._readers[shard]


def scan(root: Path, account: Account) -> tuple[RecordStore, list[Found]]:
  """Lists the pictures of prepared shards, sorted by key.

  Args:
    root: the directory.
    account: counts the pictures that were left out when the shards were written.

  Raises:
    ValueError: the directory is unfinished, or its manifest or a listing is damaged.
  """
  if not (root / MANIFEST).exists():
    raise ValueError(
      f'config.data.path: {shown(root)} is not finished: it has no {MANIFEST}. Run the command that writes it again.'
    )
  manifest = read_json_object(root / MANIFEST, _ADVICE)
  if manifest.get('format') != _FORMAT:
    raise ValueError(
      f'config.data.path: {shown(root / MANIFEST)} has format {shown(manifest.get("format"), 20)}; this version reads '
      f'format {_FORMAT}. {_ADVICE}'
    )
  places: dict[str, _Place] = {}
  pictures: list[Found] = []
  try:
    for shard in manifest['shards']:
      name = str(shard['name'])
      listing = read_json_object(root / f'{os.path.basename(name)}.json', _ADVICE, _MOST_LISTING_BYTES)
      if listing['sha256'] != shard['sha256'] or len(listing['records']) != shard['count']:
        raise ValueError(f'{name}.json is not the listing that the manifest names')
      for key, reason in listing['left_out']:
        account.leave_out(f'left out when the data were prepared: {reason}', str(key))
      for number, (key, size, captions) in enumerate(listing['records']):
        if not isinstance(key, str) or type(size) is not int or not _are_captions(captions):
          raise ValueError(f'{name}.json is damaged')
        places[key] = _Place(os.path.basename(name), number, size)
        pictures.append(Found(key, key, captions))
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'config.data.path: {shown(root)} is damaged: {shown(error)}. {_ADVICE}') from error
  if len(places) < len(pictures):
    raise ValueError(f'config.data.path: {shown(root)} has several records with the same key. {_ADVICE}')
  return RecordStore(root, places), sorted(pictures, key=lambda picture: picture.key)


def _sha256(file: Path) -> str:
  digest = hashlib.sha256()
  with file.open('rb') as opened:
    while block := opened.read(_BLOCK):
      digest.update(block)
  return digest.hexdigest()
