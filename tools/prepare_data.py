"""Copies any source of pictures into shards that are read fast in random order.

    python tools/prepare_data.py --path=PICTURES --out=DATA
    python tools/prepare_data.py --path=TARS --out=DATA --size=64

--path is what config.data.path may be: a folder, tar files, Parquet files. Pictures that training cannot read are left
out and listed. With --size, the shorter side of each larger picture is reduced to this many pixels. DATA/manifest.json
has counts, checksums and options. Train with --config.data.path=DATA. If the command is stopped, run it again: it goes
on with the shards that are missing. DATA/work may be deleted afterwards. The exit status is 1 if no picture was copied.
"""

from pathlib import Path

from absl import flags

from dalle_jax import flags as doors
from dalle_jax.files import make_directory

_PATH = flags.DEFINE_string('path', None, 'The pictures, as in config.data.path.')
_OUT = flags.DEFINE_string('out', None, 'Directory to write.')
_SOURCE = flags.DEFINE_string('source', 'auto', 'Kind of the source, as in config.data.source.')
_CAPTION_KEY = flags.DEFINE_string('caption_key', 'caption', 'Parquet: the column of the captions.')
_SIZE = flags.DEFINE_integer(
  'size', 0, 'Reduce the shorter side to this many pixels; 0: keep all files as they are.', 0
)
_SKIP_LIST = flags.DEFINE_string('skip_list', '', 'Leave out the pictures of this list, as config.data.skip_list.')
_PER_SHARD = flags.DEFINE_integer('per_shard', 10_000, 'Pictures in a shard.', 1)
_NUM_THREADS = flags.DEFINE_integer('num_threads', 0, 'Threads that read pictures; 0: 1 for each core.', 0)
_MAX_IMAGE_PIXELS = doors.define_max_image_pixels()
flags.mark_flags_as_required(['path', 'out'])


def main(argv: list[str]) -> int:
  del argv
  from dalle_jax.config import DataConfig
  from dalle_jax.data import preparation
  from dalle_jax.training.progress import Progress

  make_directory(_OUT.value)
  config = DataConfig(
    source=_SOURCE.value, path=_PATH.value, caption_key=_CAPTION_KEY.value, skip_list=_SKIP_LIST.value,
    max_image_pixels=_MAX_IMAGE_PIXELS.value, num_threads=_NUM_THREADS.value,
  )  # fmt: skip
  with Progress('preparing', 1, 'picture') as progress:
    account, manifest = preparation.prepare(config, Path(_OUT.value), _SIZE.value, _PER_SHARD.value, progress.update_of)
  print(account)
  size = sum(shard['bytes'] for shard in manifest['shards'])
  print(f'{manifest["written"]:,} pictures in {len(manifest["shards"])} shards, {size / 1e6:,.1f} MB: {_OUT.value}')
  if not manifest['written']:
    print('There is nothing to train on.')
    return 1
  return 0


if __name__ == '__main__':
  doors.run(main)
