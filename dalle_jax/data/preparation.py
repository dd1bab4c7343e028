"""Copy a source of pictures into shards; see `picture_records`."""

import collections
import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from dalle_jax.config import DataConfig
from dalle_jax.data import detect, picture_kinds, readers
from dalle_jax.data.account import Account
from dalle_jax.data.fingerprints import hash_of
from dalle_jax.data.pictures import image
from dalle_jax.data.pictures.crops import reduce_shorter_side
from dalle_jax.data.pictures.stores import Store
from dalle_jax.data.shards.picture_records import NewRecord, Writer
from dalle_jax.data.sources.entries import Found

WORK = 'work'  # in the directory that is written: indexes of tar files, and copies of Parquet files


def prepare(
  config: DataConfig, out: Path, size: int, per_shard: int, progress: Callable[[int, int], None] | None = None
) -> tuple[Account, dict[str, Any]]:
  """Copy the pictures of a source.

  Args:
    config: the source, the limit of pixels, and the number of threads.
    out: the directory to write.
    size: the shorter side of larger pictures afterwards, in pixels; 0 to keep all files as they are.
    per_shard: pictures in a shard.
    progress: called with (pictures done, pictures in total).

  Returns:
    What was found, used and left out, and the manifest.

  Raises:
    ValueError: the source has no pictures that can be copied, or `out` has other data.
  """
  config = dataclasses.replace(config, source=detect.source_of(config))
  if config.source not in picture_kinds.KINDS:
    raise ValueError(
      f'--path {config.path} is read as {config.source}; only {", ".join(picture_kinds.KINDS)} can be prepared.'
    )
  if out.resolve() == Path(config.path).resolve():
    raise ValueError(f'--out {out} is also --path; give another directory.')
  account = Account('pictures')
  store, found = picture_kinds.listed(config, out / WORK, account)
  if not found:
    raise ValueError(f'--path {config.path} has no pictures.\n{account}')
  counts = collections.Counter(picture.key for picture in found)
  records = [
    NewRecord(
      picture.key if counts[picture.key] == 1 else picture.path, picture.captions,
      functools.partial(_copied, store, picture, size, config.max_image_pixels),
    )
    for picture in found
  ]  # fmt: skip
  listing = [[picture.path, picture.captions, *store.stamp(picture.path)] for picture in found]
  plan = {'source': config.source, 'listing': hash_of(listing), 'size': size}
  manifest = Writer(out, records, plan, per_shard).run(readers.num_threads(config), progress)
  account.used = manifest['written']
  for shard in manifest['shards']:
    for key, reason in shard['left_out']:
      account.leave_out(reason, key)
  return account, manifest


def _copied(store: Store, picture: Found, size: int, max_pixels: int) -> bytes:
  """The bytes of a picture, checked by decoding it as training does, and reduced if it is larger than `size`."""
  data = store.read(picture.path)[1]
  pixels = image.decode(data, max_pixels)
  if not size or min(pixels.shape[:2]) <= size:
    return data
  buffer = io.BytesIO()
  Image.fromarray(reduce_shorter_side(pixels, size)).save(buffer, 'PNG')
  return buffer.getvalue()
