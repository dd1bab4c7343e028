"""What a model attends to, and how sure it is of every token, as one HTML page.

    python tools/attention.py --model=runs/quickstart/model --prompt="a large red circle above a small blue square"
    python tools/attention.py --model=runs/quickstart/model --prompt="a red circle" --image=picture.png
    python tools/attention.py --model=runs/transformer/model --prompt="The if statement" --layers=1,4 --heads=mean

Draws the images that `python -m dalle_jax.generate` draws with the same prompt, seed and settings (or takes the picture
of --image, or continues a text), reads the whole sequence once more, and writes a page that works without a network:
what each word of the caption drew, what each image token looked at, the matrix of every layer and head, and the
probability, entropy and rank of every token.
"""

from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory, as training writes it (WORKDIR/model).')
_PROMPT = flags.DEFINE_string('prompt', '', 'What to draw, the caption of --image, or a text to continue.')
_OUT = flags.DEFINE_string('out', 'attention.html', 'The file to write.')
_IMAGE = flags.DEFINE_string('image', '', 'A picture to look at instead of drawing one; its middle square, resized.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 1, 'Images, or texts, of the prompt.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise; the same seed draws the same images.')
_TEMPERATURE = flags.DEFINE_float('temperature', None, "0 takes the likeliest tokens; by default the model's own.")
_TOP_K = flags.DEFINE_integer('top_k', None, "Tokens to choose among, 0 for all; by default the model's own.")
_LAYERS = flags.DEFINE_list('layers', None, 'Numbers of layers, from 1, with commas; by default all that fit.')
_HEADS = flags.DEFINE_list('heads', None, "Numbers of heads, from 1, or 'mean' for none; by default all that fit.")
_TRUNCATE = flags.DEFINE_bool('truncate', False, 'Cut a prompt that is too long for a picture.')
_CONTINUATION = flags.DEFINE_bool('continuation', True, 'Continue the prompt of a model of text, or look at it alone.')
flags.mark_flag_as_required('model')


def numbers(flag: str, words: list[str] | None) -> list[int] | None:
  """The numbers of a flag, each once and in order; none for 'mean'.

  Raises:
    ValueError: something else stands there.
  """
  if words is None:
    return None
  if flag == '--heads' and words == ['mean']:
    return []
  try:
    found = sorted({int(word) for word in words})
  except ValueError:
    found = []
  if not found:
    also = ", or 'mean'" if flag == '--heads' else ''
    raise ValueError(f'{flag} is {",".join(words)!r}; give numbers from 1 with commas{also}.')
  return found


def main(argv: list[str]) -> int:
  del argv
  layers, heads = numbers('--layers', _LAYERS.value), numbers('--heads', _HEADS.value)
  doors.start_jax(distributed=False)
  from dalle_jax.jobs.study import attention_study

  path = attention_study.show(
    _MODEL.value, _PROMPT.value, out=_OUT.value, image=_IMAGE.value, num_images=_NUM_IMAGES.value, seed=_SEED.value,
    temperature=_TEMPERATURE.value, top_k=_TOP_K.value, layers=layers, heads=heads, truncate=_TRUNCATE.value,
    continuation=_CONTINUATION.value,
  )  # fmt: skip
  print(f'{path}, {path.stat().st_size / 1e6:.1f} MB')
  return 0


if __name__ == '__main__':
  doors.run(main)
