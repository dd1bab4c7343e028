"""Compresses files with a trained model, and decompresses them; without loss unless --lossy is given.

python -m dalle_jax.compress encode --model=runs/transformer/model book.txt book.djxc
python -m dalle_jax.compress decode --model=runs/transformer/model book.djxc book_again.txt
python -m dalle_jax.compress info book.djxc

A text model compresses any file. An image model compresses an image or a directory of images.
"""

import functools
import os
import sys

from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory, WORKDIR/model of a training run.')
_VERIFY_MODEL = doors.define_verify_model()
_CODER = flags.DEFINE_string(
  'coder', 'range', 'encode: the entropy coder. range, or huffman: a new Huffman code for every token.'
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 64, 'encode: number of sequences coded in parallel. The file stores it for decoding.'
)
_VERIFY = flags.DEFINE_bool(
  'verify', True, 'encode: decode each chunk and compare. This finds devices whose results are not reproducible.'
)
_LOSSY = flags.DEFINE_bool(
  'lossy', False, "encode, images: store only the codes. Decoding gives the dVAE's reconstruction."
)
_RESIZE = flags.DEFINE_bool(
  'resize', False, "encode, images: first crop and resize them to the model's size, as training does."
)
_CAPTION = flags.DEFINE_string(
  'caption', '', 'encode, images: one caption for all images. Default: the captions in the directory, if any.'
)
_COMPARE = flags.DEFINE_bool(
  'compare', False, 'encode: also measure gzip, bzip2, xz and zstd; for images, PNG and lossless WebP.'
)
_REPORT = flags.DEFINE_string('report', None, 'encode: JSON file to write the measured figures to.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace OUT if it exists.')
_RECOVER = flags.DEFINE_bool(
  'recover', False, 'decode: if the file is damaged, write the intact chunks before the damage.'
)
_MAX_IMAGE_PIXELS = doors.define_max_image_pixels()
_MAX_BATCH_SIZE = flags.DEFINE_integer(
  'max_batch_size',
  4096,
  'decode: largest number of sequences that a file may ask to decode in parallel.',
  lower_bound=1,
)

# Decoding must repeat the rounding of encoding. Autotuning picks kernels by timing, and nondeterministic kernels sum in
# any order, so both would change the rounding from run to run.
_GPU_FLAGS = '--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0'
_ENCODING = ('coder', 'batch_size', 'verify', 'lossy', 'resize', 'caption', 'compare', 'report')
# The flags that each action refuses.
_REFUSED = {
  'encode': ('recover', 'max_batch_size'), 'decode': _ENCODING,
  'info': (*_ENCODING, 'model', 'verify_model', 'recover', 'overwrite', 'max_image_pixels', 'max_batch_size'),
}  # fmt: skip
USAGE = {'encode': 'IN OUT', 'decode': 'IN OUT', 'info': 'IN'}


def main(action: str, argv: list[str]) -> int:
  paths = argv[1:]
  if len(paths) != len(USAGE[action].split()):
    raise ValueError(f'{action} takes {USAGE[action]}; given {" ".join(paths) or "no path"}.')
  misplaced = [name for name in _REFUSED[action] if flags.FLAGS[name].present]
  if misplaced:
    raise ValueError(f'--{", --".join(misplaced)}: not for {action}; omit when running {action}.')
  model = _MODEL.value
  if action != 'info' and model is None:
    raise ValueError(f'{action} needs --model=DIR, the directory WORKDIR/model of a training run.')
  os.environ['XLA_FLAGS'] = f'{_GPU_FLAGS} {os.environ.get("XLA_FLAGS", "")}'.strip()
  from dalle_jax.bundle import verify_by_default
  from dalle_jax.compression.settings import CompressionSettings
  from dalle_jax.jobs.compress import commands
  from dalle_jax.jobs.compress.limits import DecodingLimits

  verify_by_default(_VERIFY_MODEL.value)
  if action == 'info':
    commands.info(*paths)
    return 0
  assert model is not None, 'checked above'
  source, out = paths
  settings = CompressionSettings(
    coder=_CODER.value, batch_size=_BATCH_SIZE.value, verify=_VERIFY.value, lossy=_LOSSY.value, resize=_RESIZE.value,
    caption=_CAPTION.value, max_image_pixels=_MAX_IMAGE_PIXELS.value,
  )  # fmt: skip
  doors.start_jax(distributed=False)
  if action == 'encode':
    commands.encode(
      model, source, out, settings, overwrite=_OVERWRITE.value, compare=_COMPARE.value, report=_REPORT.value
    )
  else:
    limits = DecodingLimits(max_image_pixels=_MAX_IMAGE_PIXELS.value, max_batch_size=_MAX_BATCH_SIZE.value)
    commands.decode(model, source, out, recover=_RECOVER.value, overwrite=_OVERWRITE.value, limits=limits)
  return 0


if __name__ == '__main__':
  doors.run(functools.partial(main, doors.take_subject(sys.argv, tuple(USAGE))), positional=True)
