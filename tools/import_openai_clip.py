"""Converts a CLIP model published by OpenAI, or a similar one, to a model directory that ranks images by captions.

    python tools/import_openai_clip.py --weights=ViT-B-32.pt --vocab=bpe_simple_vocab_16e6.txt.gz --out=models/clip

The weights may be a published archive, a state dict, or safetensors with the same names or the names of CLIPModel in
transformers. The vocabulary may also be a merges.txt or a tokenizer.json. Nothing in the files is executed, and torch
is not needed. The result can be the --reranker of `python -m dalle_jax.generate` and `python -m dalle_jax.evaluate`.
"""

from pathlib import Path

from absl import flags

from dalle_jax import flags as doors
from dalle_jax.files import check_array_path, check_path

_WEIGHTS = flags.DEFINE_string('weights', None, 'File with the weights: .pt archive, state dict or .safetensors.')
_VOCAB = flags.DEFINE_string(
  'vocab', None, 'Tokenizer file: bpe_simple_vocab_16e6.txt.gz, merges.txt or tokenizer.json.'
)
_OUT = flags.DEFINE_string('out', None, 'Model directory to create; it must not exist.')
flags.mark_flags_as_required(['weights', 'vocab', 'out'])


def main(argv: list[str]) -> int:
  del argv
  out = Path(_OUT.value)
  check_path(_OUT.value, '--out')
  check_array_path(out, '--out')
  if out.exists():
    raise ValueError(f'--out {out} is there already; name another directory.')
  from dalle_jax import bundle
  from dalle_jax.data.text.clip_tokenizer import ClipTokenizer
  from dalle_jax.importing import openai_clip

  tokenizer = ClipTokenizer.load(_VOCAB.value)
  config, params = openai_clip.load(Path(_WEIGHTS.value), tokenizer.vocab_size)
  import jax

  counts = {name: sum(leaf.size for leaf in jax.tree.leaves(encoder)) for name, encoder in params.items()}
  bundle.save(out, config, tokenizer, {'reranker': jax.tree.map(jax.numpy.asarray, params)}, 'imported')
  size, patch = config.data.image_size, config.reranker.patch_size
  print(f'image encoder: {counts["image"]:,} parameters; text encoder: {counts["text"]:,}')
  print(f'pictures: {size} x {size} in patches of {patch}; texts: {config.tokenizer.text_length} tokens')
  print(out)
  return 0


if __name__ == '__main__':
  doors.run(main)
