"""Inspect pictures before training: decode them as training does, and note what is unusual about them."""

import collections
import concurrent.futures.process
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dalle_jax.data.checks.near_duplicates import Look, looks_of, reduced
from dalle_jax.data.pictures import gate, image
from dalle_jax.data.pictures.checked_pictures import Verdict
from dalle_jax.data.pictures.stores import Store

_CHUNK = 64  # pictures between two messages of a process
_MOST_IN_PROCESS = 1_500  # pictures that are read before other processes would have started


class Inspection(NamedTuple):
  """What was found out about a picture."""

  verdict: Verdict
  is_cut: bool = False  # whether the file ends too early; only for pictures that cannot be read
  width: int = 0  # pixels, upright; 0 if the picture cannot be read
  height: int = 0
  traits: image.Traits | None = None
  look: Look | None = None


def inspect_all(
  store: Store,
  paths: Sequence[str],
  max_pixels: int = image.MAX_PIXELS,
  num_processes: int = 0,
  progress: Callable[[int, int], None] | None = None,
) -> list[Inspection]:
  """Inspect pictures, in processes if there are many: decoding small pictures is mostly Python's own work.

  Args:
    store: reads the pictures.
    paths: the pictures.
    max_pixels: the largest number of pixels of a picture.
    num_processes: the number of processes; 0 for one for each core. Few pictures are read in this process.
    progress: called with (pictures done, pictures in total).

  Raises:
    ValueError: a process was killed.
  """
  results: list[Inspection] = []
  for part in _parts(store, paths, max_pixels, num_processes):
    results += part
    if progress:
      progress(len(results), len(paths))
  return results


def _parts(store: Store, paths: Sequence[str], max_pixels: int, num_processes: int) -> Iterator[list[Inspection]]:
  chunks = [list(paths[start : start + _CHUNK]) for start in range(0, len(paths), _CHUNK)]
  if not num_processes and len(paths) <= _MOST_IN_PROCESS:
    num_processes = 1
  num_processes = min(num_processes or _num_cores(), len(chunks))
  if num_processes <= 1:
    yield from (_inspect_chunk(store, max_pixels, chunk) for chunk in chunks)
    return
  # Not fork: this process may have threads.
  context = multiprocessing.get_context('spawn')
  pool = concurrent.futures.ProcessPoolExecutor(num_processes, context, _begin, (store, max_pixels))
  pending: collections.deque = collections.deque()
  try:
    waiting = iter(chunks)
    pending.extend(pool.submit(_inspect_in_process, chunk) for chunk in itertools.islice(waiting, 4 * num_processes))
    while pending:
      yield pending.popleft().result()
      pending.extend(pool.submit(_inspect_in_process, chunk) for chunk in itertools.islice(waiting, 1))
  except concurrent.futures.process.BrokenProcessPool:
    raise ValueError(
      f'One of the {num_processes} processes that decode pictures was killed, probably because memory ran out. Use '
      'fewer with --num_processes, or lower --max_image_pixels.'
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def _num_cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


_work: list[tuple[Store, int]] = []  # of this process, if it is one of the pool


def _begin(store: Store, max_pixels: int) -> None:
  _work.append((store, max_pixels))


def _inspect_in_process(paths: list[str]) -> list[Inspection]:
  return _inspect_chunk(*_work[0], paths)


def _inspect_chunk(store: Store, max_pixels: int, paths: list[str]) -> list[Inspection]:
  pairs = [_inspect(store, path, max_pixels) for path in paths]
  looks = iter(looks_of([small for _, small in pairs if small]))
  return [inspection._replace(look=next(looks)) if small else inspection for inspection, small in pairs]


def _inspect(store: Store, path: str, max_pixels: int) -> tuple[Inspection, bytes]:
  """Inspects one picture with the gate of training, except for its look: returns `near_duplicates.reduced` instead."""
  contents, small = b'', b''
  size, traits = (0, 0), None

  def decode(data: bytes, max_pixels: int) -> tuple[str, ...]:
    nonlocal contents, small, size, traits
    contents = data
    picture, traits, notes = image.read_with_traits(data, max_pixels)
    small, size = reduced(picture), picture.size
    return notes

  _, verdict = gate.examine(store, path, max_pixels, decode)
  if verdict.problem:
    return Inspection(verdict, bool(contents) and is_cut(contents, verdict.problem)), b''
  return Inspection(verdict, False, *size, traits), small


def is_cut(data: bytes, problem: str) -> bool:
  """Whether a file that cannot be decoded ends too early.

  Args:
    data: the contents of the file.
    problem: what the decoder said.
  """
  if any(word in problem for word in ('truncated', 'cut off', 'rows are missing')):
    return True
  if data.startswith(b'RIFF'):
    return len(data) < int.from_bytes(data[4:8], 'little') + 8
  if data.startswith(b'BM'):
    return len(data) < int.from_bytes(data[2:6], 'little')
  if data.startswith(b'GIF8'):
    return not data.rstrip(b'\0').endswith(b';')
  if data.startswith(b'\xff\xd8\xff'):
    return b'\xff\xd9' not in data[-1024:]
  if data[4:8] == b'ftyp':
    return _ends_in_box(data)
  if data[:4] in (b'II*\0', b'MM\0*'):  # a TIFF file whose directory lies behind its end
    return int.from_bytes(data[4:8], 'little' if data.startswith(b'II') else 'big') + 2 > len(data)
  return False


def _ends_in_box(data: bytes) -> bool:
  """Whether the boxes of an AVIF file go on behind its end."""
  position = 0
  while position + 8 <= len(data):
    size = int.from_bytes(data[position : position + 4], 'big')
    if size == 1:  # a larger size follows
      size = int.from_bytes(data[position + 8 : position + 16], 'big')
    if size == 0:  # to the end
      return False
    position += max(size, 8)
  return position != len(data)
