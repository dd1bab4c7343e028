"""Makes a model directory of the CLIP that OpenAI published, or of one of its kind, to rank pictures by captions.

    python tools/import_openai_clip.py --weights=ViT-B-32.pt --vocab=bpe_simple_vocab_16e6.txt.gz --out=models/clip

Takes the published archives, state dicts, and safetensors with the same names or those of transformers' CLIPModel. Of
the vocabulary, merges.txt and tokenizer.json serve as well. Nothing in the files is executed, and torch is not needed.
The result serves as --reranker of `python -m dalle_jax.generate` and `python -m dalle_jax.evaluate`.
"""

from pathlib import Path

from absl import flags

from dalle_jax import flags as doors

_WEIGHTS = flags.DEFINE_string('weights', None, 'The file of weights.')
_VOCAB = flags.DEFINE_string('vocab', None, "The tokenizer's file.")
_OUT = flags.DEFINE_string('out', None, 'Directory to make; it must not be there yet.')
flags.mark_flags_as_required(['weights', 'vocab', 'out'])


def main(argv: list[str]) -> int:
  del argv
  out = Path(_OUT.value)
  if out.exists():
    raise ValueError(f'--out {out} is there already; name another directory.')
  from dalle_jax import bundle
  from dalle_jax.data.clip_tokenizer import ClipTokenizer
  from dalle_jax.importing import openai_clip

  tokenizer = ClipTokenizer.load(_VOCAB.value)
  config, params = openai_clip.load(Path(_WEIGHTS.value), tokenizer.vocab_size)
  import jax

  counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
  bundle.save(out, config, tokenizer, {'reranker': jax.tree.map(jax.numpy.asarray, params)}, 'imported')
  size, patch = config.data.image_size, config.reranker.patch_size
  print(f'image encoder: {counts["image"]:,} parameters; text encoder: {counts["text"]:,}')
  print(f'pictures: {size} x {size} in patches of {patch}; texts: {config.tokenizer.text_length} tokens')
  print(out)
  return 0


if __name__ == '__main__':
  doors.run(main)
