"""Generates, completes and varies images with a trained model; continues texts with a text model.

python -m dalle_jax.generate --model=runs/quickstart/model --prompt="a large red circle above a small blue square"
python -m dalle_jax.generate --model=runs/quickstart/model --prompt="a red circle" --image=a.png --keep_top=0.5
python -m dalle_jax.generate --model=runs/quickstart/model --from=samples/000_a_red_circle_seed0_000.png --out=again
"""

from typing import Any

from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory, WORKDIR/model of a training run.', required=True)
_VERIFY_MODEL = doors.define_verify_model()
_PROMPT = flags.DEFINE_multi_string('prompt', [], 'Text prompt; repeat the flag for more prompts.')
_PROMPTS_FILE = flags.DEFINE_string('prompts_file', '', 'Text file with one prompt per line.')
_OUT = flags.DEFINE_string('out', 'samples', 'Directory for the images.')
_OVERWRITE = doors.define_overwrite('files of the same names in OUT, which hold the prompt and the seed')
_PREVIEW_EVERY = flags.DEFINE_integer(
  'preview_every', 0, 'Rows of tokens between two previews of the unfinished images, in OUT/previews; 0: no previews.'
)

_DEFAULT = "Default: the model's own setting."

# The fields of DrawSettings.
_NUM_IMAGES = flags.DEFINE_integer(
  'num_images', None, 'Images, or texts, per prompt. Default: 8, or --candidates if that is smaller.'
)
flags.DEFINE_integer('seed', 0, 'Seed of the noise. Image i of a seed is always the same image.')
flags.DEFINE_integer('batch_size', None, f'Largest number of images per batch. {_DEFAULT}')
flags.DEFINE_float('temperature', None, f'Divides the logits; 0 takes the likeliest tokens. {_DEFAULT}')
flags.DEFINE_integer('top_k', None, f'Number of likeliest tokens to sample from; 0: all. {_DEFAULT}')
flags.DEFINE_float('top_p', None, f'Probability mass to sample from, above 0; 1: all. {_DEFAULT}')
flags.DEFINE_float('guidance_scale', None, f"Factor on the prompt's effect on the logits; 1: no guidance. {_DEFAULT}")
flags.DEFINE_float(
  'guidance_ramp', None, f'Share of the image, 0 to 1, over which the guidance scale grows from 1. {_DEFAULT}'
)
flags.DEFINE_string('negative_prompt', '', 'Prompt that guidance moves away from. Default: no caption.')
_CANDIDATES = flags.DEFINE_integer('candidates', None, 'Images to sample per prompt. Only the best --keep are written.')
_KEEP = flags.DEFINE_integer('keep', None, 'Candidates to keep per prompt; the same setting as --num_images.')
flags.DEFINE_string(
  'rank', '',
  'Score that ranks the candidates: reranker, likelihood (of the image given the prompt) or caption_likelihood (of the '
  'prompt given the image). Default: reranker if --reranker is given, else likelihood.',
)  # fmt: skip
flags.DEFINE_bool('truncate', False, 'Cut prompts that are too long for the model instead of refusing them.')
_RERANKER = flags.DEFINE_string('reranker', '', 'Model directory of a reranker or of an imported CLIP.')

# The fields of InputPicture.
_IMAGE = flags.DEFINE_string(
  'image', '', 'Image file to complete, vary or encode, of any size. Only its central square is used.'
)
flags.DEFINE_string(
  'mask',
  '',
  'Mask file of the size of --image. Light pixels are generated; if the mask has transparent pixels, only those are.',
)
flags.DEFINE_float('keep_top', None, 'Share of the image, from the top, that is kept, 0 to 1.')
flags.DEFINE_list('keep_box', None, 'Rectangle that is kept: LEFT,TOP,RIGHT,BOTTOM as shares of the image, 0 to 1.')
flags.DEFINE_list(
  'redraw_box', None, 'Rectangle that is generated: LEFT,TOP,RIGHT,BOTTOM as shares of the image, 0 to 1.'
)
flags.DEFINE_float('variation', None, 'Generate variations of --image. Near 0 keeps the image; 1 ignores it.')

_MAX_IMAGE_PIXELS = doors.define_max_image_pixels()

_FROM = flags.DEFINE_string('from', '', 'PNG file that this program wrote. Generates its image again.')
_ENCODE = flags.DEFINE_bool(
  'encode', False, 'Only encode --image: write its codes as OUT/NAME.npy and their reconstruction.'
)
_DECODE = flags.DEFINE_string('decode', '', 'Only decode the integer codes in this .npy file, [h, w] or [N, h, w].')

_SETTINGS = (
  'seed', 'batch_size', 'temperature', 'top_k', 'top_p', 'guidance_scale', 'guidance_ramp', 'negative_prompt',
  'candidates', 'rank', 'truncate',
)  # fmt: skip
_BOXES = ('keep_box', 'redraw_box')
_IMAGE_OPTIONS = ('mask', 'keep_top', *_BOXES, 'variation')


def main(argv: list[str]) -> int:
  del argv
  from dalle_jax.bundle import verify_by_default
  from dalle_jax.jobs.draw import again, code_files
  from dalle_jax.sampling.draw_settings import DrawSettings

  _check_flags()
  verify_by_default(_VERIFY_MODEL.value)
  values: dict[str, Any] = {name: flags.FLAGS[name].value for name in _SETTINGS}
  settings = DrawSettings(num_images=_num_images(), **values)
  if _ENCODE.value or _DECODE.value:
    doors.start_jax(distributed=False)
    if _ENCODE.value:
      files = code_files.encode(_MODEL.value, _IMAGE.value, _OUT.value, _MAX_IMAGE_PIXELS.value, _OVERWRITE.value)
    else:
      files = code_files.decode(_MODEL.value, _DECODE.value, _OUT.value, _OVERWRITE.value)
    for file in files:
      print(file)
    return 0
  input_picture = _input_picture()
  if _FROM.value:
    doors.start_jax(distributed=False)
    files = again.draw_again(
      _MODEL.value, _FROM.value, _OUT.value, input_picture, _MAX_IMAGE_PIXELS.value, _OVERWRITE.value
    )
    print(files[0])
    return 0
  return _draw(settings, input_picture)


def _num_images() -> int:
  """The number of images to keep per prompt."""
  counts = [flag.value for flag in (_KEEP, _NUM_IMAGES) if flag.value is not None]
  if len(counts) > 1:
    raise ValueError('--keep and --num_images set the same number; give only one of them.')
  if _KEEP.value is not None and _CANDIDATES.value is None:
    raise ValueError('--keep needs --candidates, the number of images to choose from; give both, or --num_images.')
  return counts[0] if counts else min(8, _CANDIDATES.value or 8)


def _check_flags() -> None:
  """Raises ValueError for flags that would be ignored or that exclude each other."""
  if _RERANKER.value and _CANDIDATES.value is None and flags.FLAGS['rank'].value != 'reranker':
    raise ValueError('--reranker ranks candidates; also give --candidates, the number of images to choose from.')
  modes = {'from': _FROM.value, 'encode': _ENCODE.value, 'decode': _DECODE.value}
  chosen = [name for name, value in modes.items() if value]
  if len(chosen) > 1:
    raise ValueError(f'--{chosen[0]} and --{chosen[1]} exclude each other; give one of them.')
  if not chosen:
    return
  used = {'from': ('image', *_IMAGE_OPTIONS), 'encode': ('image',), 'decode': ()}[chosen[0]]
  names = ['prompt', 'prompts_file', 'num_images', 'keep', 'preview_every', 'reranker', 'image']
  names += [*_SETTINGS, *_IMAGE_OPTIONS]
  ignored = [name for name in names if name not in used and flags.FLAGS[name].present]
  if ignored:
    reason = 'takes all settings from the picture' if chosen[0] == 'from' else 'draws nothing'
    raise ValueError(f'--{chosen[0]} {reason}; leave out --{", --".join(ignored)}.')


def _draw(settings: Any, input_picture: Any) -> int:
  from dalle_jax.bundle import holds_text, takes_prompts
  from dalle_jax.jobs.draw import generation, text_samples

  has_prompts = _PROMPTS_FILE.value or any(_PROMPT.value)
  prompts = generation.read_prompts(_PROMPT.value, _PROMPTS_FILE.value) if has_prompts else ['']
  is_text_model = holds_text(_MODEL.value)
  if not has_prompts and not is_text_model and not input_picture and takes_prompts(_MODEL.value):
    prompts = generation.read_prompts(_PROMPT.value, '')  # raises the error for missing prompts
  doors.start_jax(distributed=False)
  if is_text_model:
    names = ['out', 'overwrite', 'preview_every', 'reranker', 'image', 'truncate', 'guidance_scale', 'guidance_ramp']
    names += ['negative_prompt', 'candidates', 'keep', 'rank']
    ignored = [name for name in names if flags.FLAGS[name].present]
    if ignored:
      raise ValueError(f'{_MODEL.value} (--model) is a text model; leave out --{", --".join(ignored)}.')
    text_samples.show(prompts, text_samples.write(_MODEL.value, prompts, settings))
    return 0
  files = generation.draw(
    _MODEL.value, prompts, settings, out=_OUT.value, given=input_picture, reranker=_RERANKER.value,
    preview_every=_PREVIEW_EVERY.value, overwrite=_OVERWRITE.value,
  )  # fmt: skip
  *images_and_pages, sheet = files
  pages = [file for file in images_and_pages if file.suffix == '.html']
  print(f'{len(images_and_pages) - len(pages)} image(s) in {_OUT.value}; contact sheet: {sheet}')
  for page in pages:
    print(f'all candidates with their scores: {page}')
  return 0


def _input_picture() -> Any:
  """The `InputPicture` to complete or to vary; None without --image."""
  values: dict[str, Any] = {name: flags.FLAGS[name].value for name in _IMAGE_OPTIONS}
  if not _IMAGE.value:
    names = [name for name, value in values.items() if value not in ('', None)]
    if names:
      raise ValueError(f'--{names[0]} needs an input image; give it with --image.')
    return None
  from dalle_jax.jobs.draw.given_picture import InputPicture

  for name in _BOXES:
    try:
      values[name] = None if values[name] is None else tuple(float(side) for side in values[name])
    except ValueError:
      raise ValueError(f'--{name} is {",".join(values[name])}; give four numbers, LEFT,TOP,RIGHT,BOTTOM.') from None
  return InputPicture(image=_IMAGE.value, max_image_pixels=_MAX_IMAGE_PIXELS.value, **values)


if __name__ == '__main__':
  doors.run(main)
