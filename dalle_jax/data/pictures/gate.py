"""The check of pictures before training: it decodes each of them as training does, in several threads."""

import collections
import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator

from dalle_jax.data.pictures import image, picture_files
from dalle_jax.data.pictures.checked_pictures import CheckedPictures, Verdict
from dalle_jax.data.pictures.stores import Stamp, Store, TooLargeError
from dalle_jax.files import shown

MOST_THREADS = 16
_DECODING_ERROR = 'cannot decode the image'


def check(
  store: Store,
  paths: Iterable[str],
  checked: CheckedPictures,
  max_pixels: int = image.MAX_PIXELS,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, Verdict]:
  """Decode the pictures that `checked` does not know.

  Args:
    store: reads the pictures.
    paths: the pictures.
    checked: the verdicts of earlier checks, to which it adds the new ones.
    max_pixels: the largest number of pixels of a picture.
    progress: called with (number of pictures decoded, number of pictures to decode).

  Returns:
    The verdict on each picture.
  """
  verdicts: dict[str, Verdict] = {}
  new: list[str] = []
  for path in paths:
    known = _known(store, path, checked)
    if known is None:
      new.append(path)
    else:
      verdicts[path] = known
  with checked:
    for number, (path, stamp, verdict) in enumerate(_examine_all(store, new, max_pixels), 1):
      verdicts[path] = verdict
      if stamp is not None:
        checked.add(path, stamp, verdict)
      if progress:
        progress(number, len(new))
  return verdicts


def _known(store: Store, path: str, checked: CheckedPictures) -> Verdict | None:
  try:
    return checked.get(path, store.stamp(path))
  except OSError:
    return None


def _examine_all(store: Store, paths: list[str], max_pixels: int) -> Iterator[tuple[str, Stamp | None, Verdict]]:
  """Examine pictures in threads: Pillow and SHA-256 release Python's lock. Results have the order of the paths."""
  num_threads = min(MOST_THREADS, os.cpu_count() or 1, max(len(paths), 1))
  pending: collections.deque = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    try:
      for path in paths:
        pending.append((path, pool.submit(examine, store, path, max_pixels)))
        if len(pending) >= 4 * num_threads:
          first, result = pending.popleft()
          yield first, *result.result()
      while pending:
        first, result = pending.popleft()
        yield first, *result.result()
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def examine(
  store: Store,
  path: str,
  max_pixels: int = image.MAX_PIXELS,
  decode: Callable[[bytes, int], tuple[str, ...]] | None = None,
) -> tuple[Stamp | None, Verdict]:
  """Decode one picture.

  Args:
    store: reads the picture.
    path: the picture.
    max_pixels: the largest number of pixels.
    decode: decodes the picture as `image.read` does, and returns the notes; None for `image.read`.

  Returns:
    The picture's stamp and the verdict. The stamp is None if the verdict may change although the stamp does not.
  """
  try:
    stamp, data = store.read(path, picture_files.most_bytes(max_pixels))
  except TooLargeError as error:
    return None, Verdict('', str(error))
  except OSError as error:
    return None, Verdict('', f'it cannot be read: {error.strerror or shown(error)}')
  except MemoryError:
    return None, Verdict('', 'it does not fit into memory')
  digest = hashlib.sha256(data).hexdigest()
  try:
    return stamp, Verdict(digest, notes=decode(data, max_pixels) if decode else image.read(data, max_pixels).notes)
  except ValueError as error:
    out_of_memory = isinstance(error.__cause__, MemoryError)
    return None if out_of_memory else stamp, Verdict(digest, _reason(error))
  except MemoryError:
    return None, Verdict(digest, 'its pixels do not fit into memory')


def _reason(error: ValueError) -> str:
  """The reason in a decoder's message, without its beginning that every message has."""
  text = str(error)
  return text.partition(': ')[2] or text if text.startswith(_DECODING_ERROR) else text
