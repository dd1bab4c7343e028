"""Draws images with a trained model, completes and varies pictures; continues texts with a model of text.

python -m dalle_jax.generate --model=runs/quickstart/model --prompt="a large red circle above a small blue square"
python -m dalle_jax.generate --model=runs/quickstart/model --prompt="a red circle" --image=a.png --keep_top=0.5
python -m dalle_jax.generate --model=runs/quickstart/model --from=samples/000_a_red_circle_000.png --out=again
"""

from typing import Any

from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory, as training writes it (WORKDIR/model).')
_PROMPT = flags.DEFINE_multi_string('prompt', [], 'What to draw; repeat the flag for more prompts.')
_PROMPTS_FILE = flags.DEFINE_string('prompts_file', '', 'Text file with one prompt a line.')
_OUT = flags.DEFINE_string('out', 'samples', 'Directory for the pictures.')
_PREVIEW_EVERY = flags.DEFINE_integer('preview_every', 0, 'Rows of tokens after which OUT/previews gets a picture.')

# The fields of DrawSettings.
_NUM_IMAGES = flags.DEFINE_integer('num_images', None, 'Images, or texts, of each prompt; 8 by default.')
flags.DEFINE_integer('seed', 0, 'Seed of the noise; image i of a seed is the same, however many are drawn.')
flags.DEFINE_integer('batch_size', None, "Images drawn at a time, at most; by default the model's own.")
flags.DEFINE_float('temperature', None, "0 takes the likeliest tokens; by default the model's own.")
flags.DEFINE_integer('top_k', None, "Tokens to choose among, 0 for all; by default the model's own.")
flags.DEFINE_float('top_p', None, "Share of the probability to choose among, 1 for all; by default the model's own.")
flags.DEFINE_float('guidance_scale', None, "How far the prompt's effect is exaggerated, 1: not; default: the model's.")
flags.DEFINE_float('guidance_ramp', None, "Share of the image over which the scale grows; by default the model's own.")
flags.DEFINE_string('negative_prompt', '', 'What guidance keeps away from.')
_CANDIDATES = flags.DEFINE_integer('candidates', None, 'Images drawn of each prompt, of which --keep are kept.')
_KEEP = flags.DEFINE_integer('keep', None, 'Images kept of the candidates; by default --num_images, or 8.')
flags.DEFINE_string(
  'rank',
  '',
  'What candidates are kept by: reranker, likelihood (of the image) or caption_likelihood.',
)
flags.DEFINE_bool('truncate', False, 'Cut prompts that are too long for the model.')
_RERANKER = flags.DEFINE_string('reranker', '', 'Model directory of a reranker, or of an imported CLIP.')

# The fields of Given.
_IMAGE = flags.DEFINE_string('image', '', 'Picture to complete, to vary or to encode; the middle square is taken.')
flags.DEFINE_string('mask', '', "Picture of --image's size: white, or transparent, is drawn anew; black stays.")
flags.DEFINE_float('keep_top', None, 'Share of the picture, from the top, that stays.')
flags.DEFINE_list('keep_box', None, 'LEFT,TOP,RIGHT,BOTTOM of what stays, as shares of the picture (0 to 1).')
flags.DEFINE_list('redraw_box', None, 'LEFT,TOP,RIGHT,BOTTOM of what is drawn anew.')
flags.DEFINE_float('variation', None, 'How far images may be from the picture: near 0 hardly, 1 as far as any.')

_FROM = flags.DEFINE_string('from', '', 'Picture of this program, to be drawn again by the settings that it carries.')
_ENCODE = flags.DEFINE_bool('encode', False, "Only write --image's codes, as OUT/NAME.npy, and what they decode to.")
_DECODE = flags.DEFINE_string('decode', '', 'Only decode the codes in this .npy file, [h, w] or [N, h, w].')
flags.mark_flag_as_required('model')

_SETTINGS = (
  'seed', 'batch_size', 'temperature', 'top_k', 'top_p', 'guidance_scale', 'guidance_ramp', 'negative_prompt',
  'candidates', 'rank', 'truncate',
)  # fmt: skip
_BOXES = ('keep_box', 'redraw_box')
_GIVEN = ('mask', 'keep_top', *_BOXES, 'variation')


def main(argv: list[str]) -> int:
  del argv
  from dalle_jax.jobs.draw import again, code_files
  from dalle_jax.sampling.draw_settings import DrawSettings

  _check_flags()
  values = {name: flags.FLAGS[name].value for name in _SETTINGS}
  settings = DrawSettings(num_images=_num_images(), **values)
  if _ENCODE.value or _DECODE.value:
    doors.start_jax(distributed=False)
    one = code_files.encode if _ENCODE.value else code_files.decode
    for file in one(_MODEL.value, _IMAGE.value if _ENCODE.value else _DECODE.value, _OUT.value):
      print(file)
    return 0
  given = _given()
  if _FROM.value:
    doors.start_jax(distributed=False)
    files = again.draw_again(_MODEL.value, _FROM.value, _OUT.value, given)
    print(files[0])
    return 0
  return _draw(settings, given)


def _num_images() -> int:
  """Images to keep of each prompt."""
  given = [flag.value for flag in (_KEEP, _NUM_IMAGES) if flag.value is not None]
  if len(given) > 1:
    raise ValueError('--keep and --num_images say the same; give one of them.')
  if _KEEP.value is not None and _CANDIDATES.value is None:
    raise ValueError('--keep says how many of --candidates are kept; give both, or --num_images.')
  return given[0] if given else min(8, _CANDIDATES.value or 8)


def _check_flags() -> None:
  """Refuses flags that would be ignored."""
  if _RERANKER.value and _CANDIDATES.value is None and flags.FLAGS['rank'].value != 'reranker':
    raise ValueError('--reranker ranks candidates; give --candidates, of which --keep are kept.')
  alone = {'from': _FROM.value, 'encode': _ENCODE.value, 'decode': _DECODE.value}
  chosen = [name for name, value in alone.items() if value]
  if len(chosen) > 1:
    raise ValueError(f'--{chosen[0]} and --{chosen[1]} exclude each other; give one of them.')
  if not chosen:
    return
  kept = {'from': ('image', *_GIVEN), 'encode': ('image',), 'decode': ()}[chosen[0]]
  names = ('prompt', 'prompts_file', 'num_images', 'keep', 'preview_every', 'reranker', 'image', *_SETTINGS, *_GIVEN)
  ignored = [name for name in names if name not in kept and flags.FLAGS[name].present]
  if ignored:
    why = 'takes all settings from the picture' if chosen[0] == 'from' else 'draws nothing'
    raise ValueError(f'--{chosen[0]} {why}; leave out --{", --".join(ignored)}.')


def _draw(settings: Any, given: Any) -> int:
  from dalle_jax.bundle import holds_text, takes_prompts
  from dalle_jax.jobs.draw import generation, text_samples

  named = _PROMPTS_FILE.value or any(_PROMPT.value)
  prompts = generation.read_prompts(_PROMPT.value, _PROMPTS_FILE.value) if named else ['']
  of_text = holds_text(_MODEL.value)
  if not named and not of_text and not given and takes_prompts(_MODEL.value):
    prompts = generation.read_prompts(_PROMPT.value, '')  # which says what is missing
  doors.start_jax(distributed=False)
  if of_text:
    names = ('out', 'preview_every', 'reranker', 'image', 'truncate', 'guidance_scale', 'guidance_ramp')
    names += ('negative_prompt', 'candidates', 'keep', 'rank')
    ignored = [name for name in names if flags.FLAGS[name].present]
    if ignored:
      raise ValueError(f'{_MODEL.value} (--model) is a model of text; leave out --{", --".join(ignored)}.')
    text_samples.show(prompts, text_samples.write(_MODEL.value, prompts, settings))
    return 0
  files = generation.draw(
    _MODEL.value, prompts, settings, out=_OUT.value, given=given, reranker=_RERANKER.value,
    preview_every=_PREVIEW_EVERY.value,
  )  # fmt: skip
  *pictures, sheet = files
  pages = [file for file in pictures if file.suffix == '.html']
  print(f'{len(pictures) - len(pages)} image(s) in {_OUT.value}; all on one sheet: {sheet}')
  for page in pages:
    print(f'all candidates, with their scores: {page}')
  return 0


def _given() -> Any:
  """The picture to complete or to vary, if there is one."""
  values = {name: flags.FLAGS[name].value for name in _GIVEN}
  found = [name for name, value in values.items() if value not in ('', None)]
  if not _IMAGE.value:
    if found:
      raise ValueError(f'--{found[0]} says what stays of a picture; give the picture with --image.')
    return None
  from dalle_jax.jobs.draw.given_picture import InputPicture

  for name in _BOXES:
    try:
      values[name] = None if values[name] is None else tuple(float(side) for side in values[name])
    except ValueError:
      raise ValueError(f'--{name} is {",".join(values[name])}; it must be four numbers with commas between.') from None
  return InputPicture(image=_IMAGE.value, **values)


if __name__ == '__main__':
  doors.run(main)
