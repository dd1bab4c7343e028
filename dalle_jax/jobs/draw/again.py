"""Drawing a picture again, by what its file carries."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from PIL import Image

from dalle_jax import bundle
from dalle_jax.bundle import drawing_parts
from dalle_jax.config import SamplingConfig
from dalle_jax.jobs.draw.generation import draw
from dalle_jax.jobs.draw.given_picture import InputPicture
from dalle_jax.sampling.draw_settings import DrawSettings

# What a picture must carry, and of which type, to be drawn again.
_CARRIED: dict[str, type] = {
  'seed': int, 'index': int, 'negative_prompt': str, 'truncate': bool, 'model': str,
  **{field.name: field.type for field in dataclasses.fields(SamplingConfig)},
}  # fmt: skip


def read_facts(file: str) -> tuple[str, dict[str, Any]]:
  """The prompt of a picture that `draw` wrote, and what it was drawn with.

  Raises:
    ValueError: it is no picture, or carries nothing of the kind.
  """
  try:
    with Image.open(file) as image:
      text = dict(getattr(image, 'text', {}))
    facts = json.loads(text['dalle_jax'])
    prompt = text['prompt']
    for name, kind in _CARRIED.items():
      if type(facts[name]) is not kind:
        raise ValueError(f'{name} is {facts[name]!r}, and not of type {kind.__name__}')
    if not 0 <= facts['index'] < 2**31:
      raise ValueError(f'the index {facts["index"]} is no number of an image')
  except (OSError, ValueError, KeyError, TypeError, RecursionError, Image.DecompressionBombError) as error:
    raise ValueError(
      f'--from={file} is no picture that `python -m dalle_jax.generate` wrote, or its text was changed: '
      f'{type(error).__name__}: {str(error)[:200]}'
    ) from None
  return prompt, facts


def draw_again(path: str, file: str, out: str, given: InputPicture | None = None) -> list[Path]:
  """Draws the picture in a file again, by what it carries.

  Args:
    path: the model directory that drew it.
    file: a PNG file of `draw`.
    out: directory for the picture, NAME_again.png.
    given: the picture and mask that it was completed or varied from.

  Raises:
    ValueError: the file carries nothing, or another model or picture drew it.
  """
  prompt, facts = read_facts(file)
  found = bundle.check(Path(path), drawing_parts(path)).get('params', '')
  if found != facts.get('model'):
    raise ValueError(
      f'{file} (--from) was drawn by the model {facts.get("model")!r}, and {path} (--model) is {found!r}; give the '
      'directory of that model.'
    )
  if facts.get('given') != (given.facts() if given else None):
    raise ValueError(
      f'{file} (--from) was drawn from the given picture {facts.get("given")}, and the flags give '
      f'{given.facts() if given else None}; give --image and what stays of it as they were.'
    )
  try:
    values = {name: facts[name] for name in _CARRIED if name not in ('index', 'model')}
    settings = DrawSettings(num_images=1, candidates=1, whole_batches=True, **values)
  except ValueError as error:
    raise ValueError(f'--from={file}: {error}') from None
  return draw(
    path, [prompt], settings, out=out, given=given, index=facts['index'], again=f'{Path(file).stem}_again.png'
  )
