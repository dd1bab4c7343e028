"""Converts a prepared TFDS data set from tfrecord to array_record files, which can be read in random order.

    python tools/convert_tfds.py --path=DATA_DIR/coco_captions/2014/1.1.0 --out=DATA_DIR/array_record/1.1.0

Records and their order stay the same. TensorFlow is not needed. Train with --config.data.path=OUT. If the command is
stopped, run it again: finished files are kept.
"""

from pathlib import Path

from absl import flags

from dalle_jax import flags as doors
from dalle_jax.files import check_path

_PATH = flags.DEFINE_string('path', None, 'Directory of one version of a prepared data set, with dataset_info.json.')
_OUT = flags.DEFINE_string('out', None, 'Directory to write.')
flags.mark_flags_as_required(['path', 'out'])


def main(argv: list[str]) -> int:
  del argv
  from dalle_jax.data.tfds import tfrecords
  from dalle_jax.training.progress import Progress

  source, out = Path(_PATH.value), Path(_OUT.value)
  check_path(out, '--out')
  if out.resolve() == source.resolve():
    raise ValueError(f'--out is the same directory as --path ({source}); name another one.')
  with Progress('converting', 1, 'record') as progress:
    count = tfrecords.convert(source, out, progress.update_of)
  print(f'{count:,} records: {out}')
  return 0


if __name__ == '__main__':
  doors.run(main)
