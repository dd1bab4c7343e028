"""Stored files that are read again: checksums in threads, and causes of errors in one line."""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import crc32c

from dalle_jax.files import shown

MOST_JSON_BYTES = 64 * 2**20  # of a list of files; far above what any run writes
MOST_SHOWN = 3  # files that a message lists
CHANGED = '(its contents have changed)'
_BLOCK_BYTES = 2**20
_ZEROS = '0' * 64
_MOST_THREADS = 16


class _Digest(Protocol):
  """What `hashlib` and `_Crc` have in common."""

  def update(self, data: memoryview, /) -> None: ...

  def hexdigest(self) -> str: ...


class _Crc:
  """A cyclic redundancy check with the methods of `hashlib`. It finds every single flipped bit.

  `crc32` is a few times faster than SHA-256, `crc32c` some ten times, because processors have an instruction for it.
  """

  def __init__(self, extend: Callable[[memoryview, int], int]) -> None:
    self._extend, self._value = extend, 0

  def update(self, data: memoryview, /) -> None:
    self._value = self._extend(data, self._value)

  def hexdigest(self) -> str:
    return f'{self._value:08x}'


ALGORITHMS: dict[str, Callable[[], _Digest]] = {
  'sha256': hashlib.sha256,
  'crc32': functools.partial(_Crc, zlib.crc32),
  'crc32c': functools.partial(_Crc, crc32c.crc32c),
}


def files_below(directory: Path) -> dict[str, int]:
  """The size in bytes of every regular file below a directory, by its path relative to the directory.

  Symbolic links are followed, each directory once.

  Raises:
    OSError: A directory cannot be listed, so that its files must not be taken for missing ones.
  """

  def fail(error: OSError) -> None:
    raise error

  sizes, seen = {}, set()
  for folder, folders, names in os.walk(directory, onerror=fail, followlinks=True):
    facts = os.stat(folder)
    if (facts.st_dev, facts.st_ino) in seen:
      folders.clear()
      continue
    seen.add((facts.st_dev, facts.st_ino))
    for file in (Path(folder, name) for name in names):
      with contextlib.suppress(FileNotFoundError):  # a broken link, or deleted meanwhile
        facts = file.stat()
        if stat.S_ISREG(facts.st_mode):
          sizes[file.relative_to(directory).as_posix()] = facts.st_size
  return dict(sorted(sizes.items()))


def checksum(file: Path, algorithm: str) -> str:
  """The checksum of a file in hexadecimal digits; `algorithm` is a key of ALGORITHMS."""
  digest, block = ALGORITHMS[algorithm](), memoryview(bytearray(_BLOCK_BYTES))
  with file.open('rb', buffering=0) as stream:
    while count := stream.readinto(block):
      digest.update(block[:count])
  return digest.hexdigest()


def checksums(directory: Path, sizes: Mapping[str, int], algorithm: str) -> dict[str, str]:
  """The checksums of files, computed in threads. The algorithms release Python's global lock.

  Args:
    directory: The directory of the files.
    sizes: The size in bytes of each file, by its path relative to `directory`. Large files are read first.
    algorithm: A key of ALGORITHMS.
  """
  names = sorted(sizes, key=lambda name: -sizes[name])
  num_threads = max(1, min(len(names), os.cpu_count() or 1, _MOST_THREADS))
  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    values = pool.map(lambda name: checksum(directory / name, algorithm), names)
    return dict(zip(names, values, strict=True))


def damages(
  directory: Path,
  expected: Mapping[str, Mapping[str, Any]],
  algorithm: str | None,
  chosen: Callable[[str], bool] = lambda name: True,
) -> list[str]:
  """Compares files with their stored sizes and checksums.

  Only files that exist below the directory are opened, whatever names are expected.

  Args:
    directory: The directory of the files.
    expected: For each path relative to `directory`, its 'size' in bytes and its checksum under the algorithm's name.
    algorithm: A key of ALGORITHMS; None compares sizes only.
    chosen: Whether to compute the checksum of a file; all sizes are compared.

  Returns:
    Descriptions such as 'd/3f (12 of 20 bytes)', in the order of `expected`. Empty if all files are intact.
  """
  sizes = files_below(directory)
  complete = {name: size for name, size in sizes.items() if name in expected and expected[name]['size'] == size}
  hashed = {name: size for name, size in complete.items() if chosen(name)}
  digests = checksums(directory, hashed, algorithm) if algorithm else {}
  problems = []
  for name, facts in expected.items():
    if name not in sizes:
      problems.append(f'{shown(name)} (missing)')
    elif name not in complete:
      problems.append(f'{shown(name)} ({sizes[name]} of {facts["size"]} bytes)')
    elif algorithm and name in digests and digests[name] != facts[algorithm]:
      problems.append(f'{shown(name)} {CHANGED}')
  return problems


def listed(items: Iterable[str]) -> str:
  """Up to MOST_SHOWN items, separated by commas, and the number of the others."""
  items = list(items)
  more = len(items) - MOST_SHOWN
  return ', '.join(items[:MOST_SHOWN]) + (f' and {more} more' if more > 0 else '')


def with_checksum(values: Mapping[str, Any]) -> str:
  """JSON text of `values` and of a last entry 'checksum': the SHA-256 of the text with zeros in its place."""
  text = json.dumps({**values, 'checksum': _ZEROS}, indent=2) + '\n'
  return text.replace(_ZEROS, hashlib.sha256(text.encode()).hexdigest())


def has_own_checksum(content: bytes, checksum: Any) -> bool:
  """Whether the content of a file from `with_checksum` is intact, given its entry 'checksum'."""
  if not isinstance(checksum, str) or len(checksum) != len(_ZEROS):
    return False
  return hashlib.sha256(content.replace(checksum.encode(), _ZEROS.encode())).hexdigest() == checksum


def cause(error: BaseException) -> str:
  """The cause of an error in one line of at most 300 characters.

  TensorStore appends the specification of its arrays and the lines of its source to the cause. Readers of damaged files
  may also fail in ways that only say something about their program.
  """
  if isinstance(error, AttributeError | TypeError | LookupError | AssertionError):
    return 'its contents are damaged'
  text = str(error).strip().partition('\n')[0]
  text = re.split(r'\s*(?:\[|;\s*)?(?:tensorstore_spec|source locations|spec)\s*=', text)[0]
  return shown(text.strip() or type(error).__name__, 300)
