"""Converts the dVAE published by OpenAI, or a similar one, to a model directory.

    python tools/import_openai_dvae.py --encoder=encoder.pkl --decoder=decoder.pkl --out=models/openai_dvae

The files may be pickled modules, as published, or state dicts. Nothing in them is executed, and torch is not needed.
The result can be the --model of `python -m dalle_jax.evaluate`, and --config.dvae.pretrained of
`python -m dalle_jax.train`.
"""

from pathlib import Path

from absl import flags

from dalle_jax import flags as doors
from dalle_jax.files import check_array_path, check_path

_ENCODER = flags.DEFINE_string('encoder', None, "File with the encoder's weights, such as encoder.pkl.")
_DECODER = flags.DEFINE_string('decoder', None, "File with the decoder's weights, such as decoder.pkl.")
_OUT = flags.DEFINE_string('out', None, 'Model directory to create; it must not exist.')
flags.mark_flags_as_required(['encoder', 'decoder', 'out'])


def main(argv: list[str]) -> int:
  del argv
  out = Path(_OUT.value)
  check_path(_OUT.value, '--out')
  check_array_path(out, '--out')
  if out.exists():
    raise ValueError(f'--out {out} is there already; name another directory.')
  from dalle_jax import bundle
  from dalle_jax.importing import openai_dvae

  config, params = openai_dvae.load(Path(_ENCODER.value), Path(_DECODER.value))
  import jax

  counts = {name: sum(leaf.size for leaf in jax.tree.leaves(module)) for name, module in params.items()}
  bundle.save(out, config, None, {'dvae': jax.tree.map(jax.numpy.asarray, params)}, 'imported')
  print(f'encoder: {counts["encoder"]:,} parameters; decoder with codebook: {counts["decoder"] + counts["code"]:,}')
  side = config.dvae.downsampling
  print(f'codes: {config.dvae.image_vocab_size}, one code per {side} x {side} pixels')
  print(out)
  return 0


if __name__ == '__main__':
  doors.run(main)
