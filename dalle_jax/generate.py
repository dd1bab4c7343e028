"""Draws images with a trained model, for prompts or without, or continues texts with a model of text.

python -m dalle_jax.generate --model=runs/quickstart/model --prompt="a large red circle above a small blue square"
"""

from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory, as training writes it (WORKDIR/model).')
_PROMPT = flags.DEFINE_multi_string('prompt', [], 'What to draw; repeat the flag for more prompts.')
_PROMPTS_FILE = flags.DEFINE_string('prompts_file', '', 'Text file with one prompt a line.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 8, 'Images, or texts, of each prompt.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise; the same seed draws the same images.')
_OUT = flags.DEFINE_string('out', 'samples', 'Directory for the pictures.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', None, "Images drawn at a time; by default the model's own.")
_TEMPERATURE = flags.DEFINE_float('temperature', None, "0 takes the likeliest tokens; by default the model's own.")
_TOP_K = flags.DEFINE_integer('top_k', None, "Tokens to choose among, 0 for all; by default the model's own.")
_TRUNCATE = flags.DEFINE_bool('truncate', False, 'Cut prompts that are too long for the model.')
flags.mark_flag_as_required('model')


def main(argv: list[str]) -> int:
  del argv
  from dalle_jax.pipeline import draw, write

  given = _PROMPTS_FILE.value or any(_PROMPT.value)
  prompts = draw.read_prompts(_PROMPT.value, _PROMPTS_FILE.value) if given else ['']
  of_text = write.holds_text(_MODEL.value)
  if not given and not of_text and draw.takes_prompts(_MODEL.value):
    prompts = draw.read_prompts(_PROMPT.value, '')  # which says what is missing
  doors.start_jax(distributed=False)
  sampling = {
    'seed': _SEED.value, 'batch_size': _BATCH_SIZE.value, 'temperature': _TEMPERATURE.value, 'top_k': _TOP_K.value
  }  # fmt: skip
  if of_text:
    write.show(prompts, write.write(_MODEL.value, prompts, num_texts=_NUM_IMAGES.value, **sampling))
    return 0
  files = draw.draw(
    _MODEL.value, prompts, out=_OUT.value, num_images=_NUM_IMAGES.value, truncate=_TRUNCATE.value, **sampling
  )
  print(f'{len(files) - 1} image(s) in {_OUT.value}; all on one sheet: {files[-1]}')
  return 0


if __name__ == '__main__':
  doors.run(main)
