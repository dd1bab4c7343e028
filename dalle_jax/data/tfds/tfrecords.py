"""Convert a prepared TFDS data set from tfrecord to array_record files, without TensorFlow.

A tfrecord file is a sequence of frames: the length of the record (8 bytes, little-endian), a checksum of these bytes,
the record, and a checksum of the record. The checksums are masked CRC-32C. The record is the same in both formats.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import crc32c

from dalle_jax.files import read_json_object, shown, write_json

INFO = 'dataset_info.json'
_MASK = 0xA282EAD8
_ADVICE = 'Give the directory of one version of a prepared TFDS data set, such as DATA_DIR/coco_captions/2014/1.1.0.'


def shard_names(source: Path) -> dict[str, int]:
  """The record files of a prepared data set in tfrecord form, with the number of records of each.

  Raises:
    ValueError: the directory is no such data set, has another format, or lacks a file.
  """
  info = read_json_object(source / INFO, _ADVICE)
  if info.get('fileFormat', 'tfrecord') != 'tfrecord':
    raise ValueError(f'{shown(source)} is stored as {shown(info["fileFormat"], 40)}; only tfrecord can be converted.')
  try:
    shards = {name: count for split in info['splits'] for name, count in _shards_of(info['name'], split)}
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(f'{shown(source / INFO)} is damaged: {shown(error)}. {_ADVICE}') from error
  missing = [name for name in shards if not (source / name).is_file()]
  if missing:
    raise ValueError(f'{shown(source)} lacks {len(missing)} of {len(shards)} files, such as {shown(missing[0])}.')
  return shards


def _shards_of(name: str, split: dict[str, Any]) -> Iterator[tuple[str, int]]:
  """Yields the file names of a split, by its template, with the numbers of their records."""
  counts = [int(count) for count in split.get('shardLengths', [])]
  template = split.get('filepathTemplate') or '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  for index, count in enumerate(counts):
    values = {
      'DATASET': name, 'SPLIT': split['name'], 'FILEFORMAT': 'tfrecord', 'SHARD_INDEX': f'{index:05d}',
      'NUM_SHARDS': f'{len(counts):05d}', 'SHARD_X_OF_Y': f'{index:05d}-of-{len(counts):05d}',
    }  # fmt: skip
    file = template.format(**values)
    if os.path.basename(file) != file:
      raise ValueError(f'a file name with a folder: {file}')
    yield file, count


def convert(source: Path, out: Path, progress: Callable[[int, int], None] | None = None) -> int:
  """Convert a data set. Files that an earlier call has finished are kept.

  Args:
    source: the directory of the data set.
    out: the directory to write. `dataset_info.json` is written last.
    progress: called with (records done, records in total).

  Returns:
    The number of records.

  Raises:
    ValueError: the data set cannot be read, a record is damaged, or a file has another number of records than
      `dataset_info.json` says.
  """
  shards = shard_names(source)
  out.mkdir(parents=True, exist_ok=True)
  done, total = 0, sum(shards.values())
  for name, count in shards.items():
    target = out / name.replace('tfrecord', 'array_record')
    if not target.exists():
      _convert_file(source / name, target, count)
    done += count
    if progress:
      progress(done, total)
  for file in source.iterdir():
    if file.is_file() and file.name not in shards and file.name != INFO:
      shutil.copyfile(file, out / file.name)
  info = json.loads((source / INFO).read_text(encoding='utf-8'))
  for split in info['splits']:
    if 'filepathTemplate' in split:
      split['filepathTemplate'] = split['filepathTemplate'].replace('tfrecord', 'array_record')
  write_json(out / INFO, {**info, 'fileFormat': 'array_record'})
  return total


def _convert_file(source: Path, target: Path, count: int) -> None:
  from array_record.python.array_record_module import ArrayRecordWriter

  partial = target.with_name(f'{target.name}.{os.getpid()}.tmp')
  number = 0
  with source.open('rb') as file:
    writer = ArrayRecordWriter(os.fspath(partial), 'group_size:1')  # one record a group: fast random access
    try:
      for number, record in enumerate(records(file, source.name), 1):  # noqa: B007
        writer.write(record)
    except ValueError:
      partial.unlink(missing_ok=True)
      raise
    finally:
      writer.close()
  if number != count:
    partial.unlink()
    raise ValueError(f'{shown(source)} has {number} records, but {INFO} says {count}; copy the file again.')
  os.replace(partial, target)


def records(file: BinaryIO, name: str) -> Iterator[bytes]:
  """Yields the records of a tfrecord file.

  Raises:
    ValueError: a checksum is wrong, or the file ends within a record.
  """

  def check(data: bytes, stored: bytes, number: int) -> None:
    checksum = crc32c.crc32c(data)
    if len(stored) != 4 or ((checksum >> 15 | checksum << 17) + _MASK) & 0xFFFFFFFF != struct.unpack('<I', stored)[0]:
      raise ValueError(f'{shown(name)}: record {number} is damaged or cut; copy the file again.')

  total = os.fstat(file.fileno()).st_size
  number = 0
  while header := file.read(8):
    check(header, file.read(4), number)
    length = struct.unpack('<Q', header)[0]
    if length > total - file.tell():
      raise ValueError(f'{shown(name)}: record {number} is cut; copy the file again.')
    record = file.read(length)
    check(record, file.read(4), number)
    yield record
    number += 1
