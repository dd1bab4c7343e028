"""Writes an HTML page that shows what a model attends to, and how certain it is of each token.

    python tools/attention.py --model=runs/quickstart/model --prompt="a large red circle above a small blue square"
    python tools/attention.py --model=runs/quickstart/model --prompt="a red circle" --image=picture.png
    python tools/attention.py --model=runs/transformer/model --prompt="The if statement" --layers=1,4 --heads=mean

The tool generates the same images as `python -m dalle_jax.generate` with the same prompt, seed and settings. It can
also use the image of --image, or continue a text. It then runs the model once over the full sequence. The page works
offline and shows:

- for each word of the caption, the image tokens that attend to it
- for each image token, what it attends to
- the attention matrix of each layer and head
- the probability, entropy and rank of each token
"""

from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory written by training (WORKDIR/model).')
_VERIFY_MODEL = doors.define_verify_model()
_PROMPT = flags.DEFINE_string('prompt', '', 'Caption of the images to generate or of --image, or text to continue.')
_OUT = flags.DEFINE_string('out', 'attention.html', 'HTML file to write.')
_OVERWRITE = doors.define_overwrite('the file of --out')
_IMAGE = flags.DEFINE_string(
  'image', '', 'Image file to analyse instead of a generated image; its central square is resized.'
)
_NUM_IMAGES = flags.DEFINE_integer('num_images', 1, 'Number of images, or of texts, to generate for the prompt.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed for sampling; the same seed generates the same images.')
_TEMPERATURE = flags.DEFINE_float(
  'temperature', None, "Sampling temperature; 0 takes the most likely tokens. Default: the model's own."
)
_TOP_K = flags.DEFINE_integer(
  'top_k', None, "Sample from this many most likely tokens; 0: from all. Default: the model's own."
)
_LAYERS = flags.DEFINE_list('layers', None, 'Comma-separated layers to show, from 1. Default: as many as fit.')
_HEADS = flags.DEFINE_list(
  'heads', None, "Comma-separated heads to show, from 1; 'mean': only the mean. Default: as many as fit."
)
_TRUNCATE = flags.DEFINE_bool('truncate', False, 'Cut a prompt that is too long for the model.')
_CONTINUATION = flags.DEFINE_bool(
  'continuation', True, 'For models of text: continue the prompt. --nocontinuation shows the prompt alone.'
)
_MAX_IMAGE_PIXELS = doors.define_max_image_pixels()
flags.mark_flag_as_required('model')


def numbers(flag: str, words: list[str] | None) -> list[int] | None:
  """Parses a flag that lists layers or heads.

  Args:
    flag: the flag's name, for error messages.
    words: the flag's values; None if it is not set.

  Returns:
    The numbers, without duplicates and ascending. Empty for --heads=mean; None if the flag is not set.

  Raises:
    ValueError: a value is not a number.
  """
  if words is None:
    return None
  if flag == '--heads' and words == ['mean']:
    return []
  try:
    indices = sorted({int(word) for word in words})
  except ValueError:
    indices = []
  if not indices:
    alternative = ", or 'mean'" if flag == '--heads' else ''
    raise ValueError(f'{flag} is {",".join(words)!r}; give numbers from 1, separated by commas{alternative}.')
  return indices


def main(argv: list[str]) -> int:
  del argv
  layers, heads = numbers('--layers', _LAYERS.value), numbers('--heads', _HEADS.value)
  doors.start_jax(distributed=False)
  from dalle_jax.bundle import verify_by_default
  from dalle_jax.jobs.study import attention_study

  verify_by_default(_VERIFY_MODEL.value)
  path = attention_study.show(
    _MODEL.value, _PROMPT.value, out=_OUT.value, image=_IMAGE.value, num_images=_NUM_IMAGES.value, seed=_SEED.value,
    temperature=_TEMPERATURE.value, top_k=_TOP_K.value, layers=layers, heads=heads, truncate=_TRUNCATE.value,
    continuation=_CONTINUATION.value, overwrite=_OVERWRITE.value, max_image_pixels=_MAX_IMAGE_PIXELS.value,
  )  # fmt: skip
  print(f'{path}, {path.stat().st_size / 1e6:.1f} MB')
  return 0


if __name__ == '__main__':
  doors.run(main)
