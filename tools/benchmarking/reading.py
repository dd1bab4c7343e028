"""The speed of reading pictures: this project's reader, Pillow alone, and PyTorch's DataLoader.

All read the same pictures from memory and make squares of `size` pixels of them, except 'Pillow, decoding alone'.
"""

import importlib.util
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle_jax.data.batches import Batches, Preprocess
from dalle_jax.data.pictures.crops import RESAMPLINGS
from dalle_jax.data.pictures.image import EXTENSIONS
from dalle_jax.data.readers import num_cores

_BATCH = 64
_SIDE, _QUALITY = 256, 90  # of the pictures that are made
DECODING = 'Pillow, decoding alone'
LOADER = 'PyTorch DataLoader, box'

Read = Callable[[int], None]  # reads so many pictures


def pictures(path: str, count: int) -> list[bytes]:
  """Picture files: up to `count` of those below a directory, or JPEGs of blurred noise, 256 pixels on a side.

  Raises:
    ValueError: `path` has no pictures.
  """
  if not path:
    return [_made(number) for number in range(count)]
  found = (file for file in sorted(Path(path).rglob('*')) if file.suffix.lower() in EXTENSIONS)
  files = [file.read_bytes() for file in itertools.islice(found, count)]
  if not files:
    raise ValueError(f'--path={path} has no pictures. Give a directory of pictures, or leave --path out.')
  return files


def _made(number: int) -> bytes:
  """A JPEG with details of all sizes, as photographs have; it takes about a byte for two pixels."""
  rng = np.random.default_rng(number)
  pixels = 128 + 4 * rng.normal(size=(_SIDE, _SIDE, 3))
  for block in (64, 32, 16, 8, 4, 2):
    coarse = rng.normal(size=(_SIDE // block, _SIDE // block, 3))
    pixels += 8 * block**0.5 * coarse.repeat(block, 0).repeat(block, 1)
  buffer = io.BytesIO()
  Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, 'JPEG', quality=_QUALITY)
  return buffer.getvalue()


class _Records:
  """The source of this project's reader."""

  def __init__(self, files: list[bytes]):
    self._files = files

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': self._files[index], 'caption': '', 'key': str(index)}


def _own(files: list[bytes], size: int, resampling: str, num_threads: int) -> Read:
  transform = Preprocess(size, resampling=resampling)
  batches = Batches(_Records(files), transform, _BATCH, seed=0, num_threads=num_threads)
  return lambda count: _take(batches, count)


def _take(batches: Iterator[Any], count: int) -> None:
  for _ in range(-(-count // _BATCH)):
    next(batches)


def _pillow(files: list[bytes]) -> Read:
  def read(count: int) -> None:
    for file in itertools.islice(itertools.cycle(files), count):
      np.asarray(Image.open(io.BytesIO(file)).convert('RGB'))

  return read


class _Squares:
  """A PyTorch data set that does what 'box' does, as torchvision's CenterCrop and Resize would: with Pillow."""

  def __init__(self, files: list[bytes], size: int):
    self._files, self._size = files, size

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> np.ndarray:
    image = Image.open(io.BytesIO(self._files[index])).convert('RGB')
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.array(square.resize((self._size, self._size), Image.Resampling.BOX))


def _loader(files: list[bytes], size: int, num_workers: int) -> Read:
  from torch.utils.data import DataLoader

  def forever() -> Iterator[Any]:
    loader = DataLoader(_Squares(files, size), batch_size=_BATCH, shuffle=True, num_workers=num_workers,
                        persistent_workers=num_workers > 0, drop_last=True)  # fmt: skip
    while True:
      yield from loader

  batches = forever()
  return lambda count: _take(batches, count)


def readers(files: list[bytes], size: int, parallel: int) -> dict[str, Read]:
  """The readers by name.

  Args:
    files: picture files, at least a batch of 64.
    size: the side of the squares in pixels.
    parallel: 0: read in one thread. Otherwise so many threads of this project's reader, or processes of PyTorch's.
  """
  named = {f'dalle_jax, {name}': _own(files, size, name, max(parallel, 1)) for name in RESAMPLINGS}
  if not parallel:
    named[DECODING] = _pillow(files)
  if importlib.util.find_spec('torch'):
    named[LOADER] = _loader(files, size, parallel)
  return named


def rates(readers_by_name: dict[str, Read], count: int, rounds: int) -> dict[str, float]:
  """Pictures per second: the median over rounds. In each round, all readers take turns."""
  seconds: dict[str, list[float]] = {name: [] for name in readers_by_name}
  for read in readers_by_name.values():
    read(_BATCH)  # starts threads and processes
  for _ in range(rounds):
    for name, read in readers_by_name.items():
      start = time.perf_counter()
      read(count)
      seconds[name].append(time.perf_counter() - start)
  return {name: count / statistics.median(times) for name, times in seconds.items()}


def print_rates(path: str, num_pictures: int, size: int, rounds: int) -> None:
  """Prints pictures per second for each reader, on one core and on all.

  Raises:
    ValueError: there are no pictures at `path`.
  """
  cores = num_cores()
  num_pictures = -(-num_pictures // _BATCH) * _BATCH
  files = pictures(path, num_pictures)
  files = list(itertools.islice(itertools.cycle(files), num_pictures))
  mean = sum(map(len, files)) / len(files)
  origin = path or f'made, {_SIDE} x {_SIDE} JPEG of quality {_QUALITY}'
  print(f'{num_pictures} pictures ({origin}; {mean:,.0f} bytes on average) to {size} x {size}, {rounds} rounds')
  single = rates(readers(files, size, 0), num_pictures, rounds)
  every = rates(readers(files, size, cores), num_pictures, rounds)
  print(f'{"":<26} {"one thread, 1/s":>16} {"of decoding":>12} {f"{cores} cores, 1/s":>14} {"per core, 1/s":>14}')
  for name, rate in single.items():
    whole = f'{every[name]:>14,.0f} {every[name] / cores:>14,.0f}' if name in every else ''
    print(f'{name:<26} {rate:>16,.0f} {rate / single[DECODING]:>12.2f} {whole}')
  if LOADER not in single:
    print('PyTorch is not installed: pip install torch, or the extra bench, adds its DataLoader.')
