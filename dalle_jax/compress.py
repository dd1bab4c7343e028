"""Compresses files without loss with a trained model, and gets them back.

python -m dalle_jax.compress encode --model=runs/transformer/model book.txt book.djxc
python -m dalle_jax.compress decode --model=runs/transformer/model book.djxc book_again.txt
python -m dalle_jax.compress info book.djxc

A model of text takes any file, one of pictures a picture or a directory of them.
"""

import functools
import os
import sys

from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory, as training writes it (WORKDIR/model).')
_CODER = flags.DEFINE_string('coder', 'range', 'range, or huffman: a fresh Huffman code for every token.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Sequences coded side by side; the file remembers it.')
_VERIFY = flags.DEFINE_bool('verify', True, 'Decode each chunk again and compare: whether this device repeats itself.')
_LOSSY = flags.DEFINE_bool('lossy', False, 'Pictures: keep the codes alone; decoding draws what they stand for.')
_RESIZE = flags.DEFINE_bool(
  'resize', False, "Pictures: first crop and resize them to the model's size, as training does."
)
_CAPTION = flags.DEFINE_string('caption', '', 'Pictures: of all of them; by default those in the directory, if any.')
_COMPARE = flags.DEFINE_bool('compare', False, 'Also measure gzip, bzip2, xz and zstd, or PNG and lossless WebP.')
_REPORT = flags.DEFINE_string('report', None, 'JSON file for the figures.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace OUT if it exists.')
_RECOVER = flags.DEFINE_bool('recover', False, 'decode: of a damaged file, keep what comes before the damage.')

# Kernels chosen by timing, and sums in any order, would give other roundings from one run to the next.
_GPU_FLAGS = '--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0'
_ENCODING = ('coder', 'batch_size', 'verify', 'lossy', 'resize', 'caption', 'compare', 'report')
# Flags that an action has no use for.
_NOT_FOR = {'encode': ('recover',), 'decode': _ENCODING, 'info': (*_ENCODING, 'model', 'recover', 'overwrite')}
USAGE = {'encode': 'IN OUT', 'decode': 'IN OUT', 'info': 'IN'}


def main(action: str, argv: list[str]) -> int:
  paths = argv[1:]
  if len(paths) != len(USAGE[action].split()):
    raise ValueError(f'{action} takes {USAGE[action]}; given {" ".join(paths) or "nothing"}.')
  misplaced = [name for name in _NOT_FOR[action] if flags.FLAGS[name].present]
  if misplaced:
    raise ValueError(f'--{", --".join(misplaced)}: not for {action}.')
  if action != 'info' and _MODEL.value is None:
    raise ValueError(f'{action} needs --model=DIR, a model directory as training writes it (WORKDIR/model).')
  os.environ['XLA_FLAGS'] = f'{_GPU_FLAGS} {os.environ.get("XLA_FLAGS", "")}'.strip()
  from dalle_jax.compression.settings import CompressionSettings
  from dalle_jax.jobs.compress import commands

  if action == 'info':
    commands.info(*paths)
    return 0
  settings = CompressionSettings(
    coder=_CODER.value, batch_size=_BATCH_SIZE.value, verify=_VERIFY.value, lossy=_LOSSY.value, resize=_RESIZE.value,
    caption=_CAPTION.value,
  )  # fmt: skip
  doors.start_jax(distributed=False)
  if action == 'encode':
    commands.encode(
      _MODEL.value, *paths, settings, overwrite=_OVERWRITE.value, compare=_COMPARE.value, report=_REPORT.value
    )
  else:
    commands.decode(_MODEL.value, *paths, recover=_RECOVER.value, overwrite=_OVERWRITE.value)
  return 0


if __name__ == '__main__':
  doors.run(functools.partial(main, doors.take_subject(sys.argv, tuple(USAGE))), positional=True)
