"""Makes a model directory of the dVAE that OpenAI published, or of one of its kind.

    python tools/import_openai_dvae.py --encoder=encoder.pkl --decoder=decoder.pkl --out=models/openai_dvae

Takes whole modules, as published, and plain state dicts. Nothing in the files is executed, and torch is not needed. The
result serves as --model of `python -m dalle_jax.evaluate`, and as --config.dvae.pretrained of
`python -m dalle_jax.train`.
"""

from pathlib import Path

from absl import flags

from dalle_jax import flags as doors

_ENCODER = flags.DEFINE_string('encoder', None, "The encoder's file.")
_DECODER = flags.DEFINE_string('decoder', None, "The decoder's file.")
_OUT = flags.DEFINE_string('out', None, 'Directory to make; it must not be there yet.')
flags.mark_flags_as_required(['encoder', 'decoder', 'out'])


def main(argv: list[str]) -> int:
  del argv
  out = Path(_OUT.value)
  if out.exists():
    raise ValueError(f'--out {out} is there already; name another directory.')
  from dalle_jax import bundle
  from dalle_jax.importing import openai_dvae

  config, params = openai_dvae.load(Path(_ENCODER.value), Path(_DECODER.value))
  import jax

  counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
  bundle.save(out, config, None, {'dvae': jax.tree.map(jax.numpy.asarray, params)}, 'imported')
  print(f'encoder: {counts["encoder"]:,} parameters; decoder with its input: {counts["decoder"] + counts["code"]:,}')
  side = config.dvae.downsampling
  print(f'codes: {config.dvae.image_vocab_size}, one for each {side} x {side} pixels')
  print(out)
  return 0


if __name__ == '__main__':
  doors.run(main)
