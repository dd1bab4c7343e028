"""Drawing images for prompts, or without, with a trained model, into PNG files and a contact sheet."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dalle_jax
from dalle_jax import bundle
from dalle_jax.config import MeshConfig, SamplingConfig
from dalle_jax.pipeline.given import Given
from dalle_jax.pipeline.model import Drawing, Model, load
from dalle_jax.pipeline.ranking import Scorer
from dalle_jax.pipeline.settings import DrawSettings
from dalle_jax.pipeline.sheets import lay_out
from dalle_jax.reporting import gallery, sheets
from dalle_jax.sampling.generate import Preview
from dalle_jax.training.progress import Progress

PREVIEWS = 'previews'
SCORE_NAMES = {
  'reranker': "the cosine of the reranker's embeddings of image and prompt",
  'likelihood': 'the log-likelihood of the image given the prompt, in nats',
  'caption_likelihood': 'the log-likelihood of the prompt given the image, in nats, but for a constant',
}


def read_prompts(prompts: Sequence[str], prompts_file: str) -> list[str]:
  """Prompts from the command line followed by those of a file, one a line (empty lines are skipped).

  Raises:
    ValueError: there are none, one is empty, or the file cannot be read.
  """
  found = list(prompts)
  if prompts_file:
    try:
      lines = Path(prompts_file).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise ValueError(f'--prompts_file {prompts_file} cannot be read: {error}') from None
    found += [line.strip() for line in lines if line.strip()]
  if not found:
    raise ValueError('No prompt was given; use --prompt="..." (repeatable) or --prompts_file=FILE with one a line.')
  if any(not prompt.strip() for prompt in found):
    raise ValueError('A prompt is empty; --prompt needs at least one word.')
  return found


def draw(
  path: str,
  prompts: Sequence[str],
  settings: DrawSettings,
  *,
  out: str,
  given: Given | None = None,
  index: int | None = None,
  reranker: str = '',
  preview_every: int = 0,
  mesh_config: MeshConfig | None = None,
) -> list[Path]:
  """Draws images for each prompt and writes those that are kept, with a contact sheet.

  Args:
    path: a model directory.
    prompts: what to draw; [''] for a model that draws without a prompt, or for no caption of a given picture.
    settings: how.
    out: directory for the pictures.
    given: a picture to complete or to vary.
    index: draws the image of this number alone.
    reranker: model directory of what ranks the candidates; '' for none.
    preview_every: rows of tokens after which OUT/previews/ gets a sheet of the images so far; 0 for none.
    mesh_config: how to use the devices.

  Returns:
    The files written: pictures, the page of all candidates where some were left out, the contact sheet.

  Raises:
    ValueError: the model, a prompt, the picture or a setting cannot be used.
  """
  drawing_parts(path)
  if reranker:
    bundle.check(Path(reranker), needs=('reranker',), flag='--reranker')
  if preview_every < 0:
    raise ValueError(f'--preview_every is {preview_every}; it must be 0 (no previews) or more rows of tokens.')
  directory = _make_directory(out)
  model = load(path, mesh_config)
  ranker = _load_reranker(reranker, model)
  known = given.known(model) if given else None
  settings = model.effective(settings, known)
  count = settings.num_drawn if index is None else 1
  total = len(prompts) * count * model.config.image_length
  previews = _Previews(directory / PREVIEWS, prompts, count) if preview_every else None
  with Progress('drawing', total, 'token') as progress:
    progress.message('compiling')
    drawn = model.draw(
      prompts, settings, known=known, index=None if index is None else [index], reranker=ranker,
      progress=progress.update_of, preview=previews, preview_every=max(preview_every, 1),
    )  # fmt: skip
  facts = _facts(model, drawn, ranker, given)
  *files, sheet = _write(directory, prompts, drawn, facts, index)
  if drawn.scores is not None:
    files.append(_write_candidates(directory / 'candidates.html', prompts, drawn, facts))
  return [*files, sheet]


def drawing_parts(model: str) -> tuple[str, str]:
  """The parts of a model directory that draw: the dVAE, and the prior or what stands in its place.

  Raises:
    ValueError: the directory holds no such model.
  """
  parts = bundle.check(Path(model), needs=('dvae',)).get('parts', [])
  needs = ('dvae', 'model' if 'model' in parts else 'prior')
  bundle.check(Path(model), needs)
  return needs


def takes_prompts(model: str) -> bool:
  """Whether a model directory holds a model that draws for prompts.

  Raises:
    ValueError: it holds no model that draws.
  """
  drawing_parts(model)
  return bundle.read_config(Path(model)).reads_captions


def _load_reranker(reranker: str, model: Model) -> Scorer | None:
  if not reranker:
    return None
  from dalle_jax.pipeline import ranker

  return ranker.load(reranker, model.mesh)


def _make_directory(out: str) -> Path:
  directory = Path(out)
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'--out {out} cannot be made: {error}') from None
  return directory


class _Previews:
  """Writes a sheet of the images so far, for each batch and number of rows."""

  def __init__(self, directory: Path, prompts: Sequence[str], count: int):
    self._directory = _make_directory(str(directory))
    self._prompts, self._count = prompts, count

  def __call__(self, preview: Preview) -> None:
    of_prompts = preview.numbers // self._count
    rows = [preview.images[of_prompts == number] for number in range(len(self._prompts))]
    name = f'{preview.numbers[0]:06d}_row_{preview.rows:03d}.png'
    most = max(map(len, rows))
    shown = [(self._prompts[i], _filled(row, most)) for i, row in enumerate(rows) if len(row)]
    sheet = lay_out([prompt for prompt, _ in shown if prompt], np.stack([row for _, row in shown]))
    sheets.save_png(sheet, self._directory / name, None)


def _filled(images: np.ndarray, count: int) -> np.ndarray:
  """Images [N, H, W, 3] with white ones behind up to `count`."""
  missing = np.full((count - len(images), *images.shape[1:]), 255, np.uint8)
  return np.concatenate([images, missing])


def _facts(model: Model, drawn: Drawing, ranker: Scorer | None, given: Given | None) -> dict[str, Any]:
  """What a picture carries besides its prompt and number: all that it takes to draw it again."""
  settings = drawn.settings
  facts = {
    'seed': settings.seed, 'negative_prompt': settings.negative_prompt, 'truncate': settings.truncate,
    **dataclasses.asdict(drawn.sampling), 'model': model.info.get('params', ''),
    'dalle_jax_version': dalle_jax.__version__,
  }  # fmt: skip
  if given:
    facts['given'] = given.facts()
  if drawn.scores is not None:
    facts |= {'candidates': settings.num_drawn, 'rank': settings.rank or ('reranker' if ranker else 'likelihood')}
  if ranker:
    facts['reranker'] = ranker.info.get('params', '')
  return facts


def _write_candidates(path: Path, prompts: Sequence[str], drawn: Drawing, facts: dict[str, Any]) -> Path:
  gallery.write_candidates_page(
    path, [prompt or 'without a prompt' for prompt in prompts], drawn.images, drawn.scores, drawn.kept,
    score_name=SCORE_NAMES[facts['rank']], settings=facts,
  )  # fmt: skip
  return path


def _write(
  directory: Path, prompts: Sequence[str], drawn: Drawing, facts: dict[str, Any], index: int | None
) -> list[Path]:
  """PNG files PROMPTNUMBER_WORDS_PLACE.png, best first, and contact_sheet.png."""
  written = []
  for number, prompt in enumerate(prompts):
    for place, candidate in enumerate(drawn.kept[number]):
      path = directory / f'{number:03d}_{_slug(prompt) if prompt else "image"}_{place:03d}.png'
      own = {'index': int(candidate) if index is None else index}
      if drawn.scores is not None:
        own['score'] = float(drawn.scores[number, candidate])
      text = {'prompt': prompt, 'dalle_jax': json.dumps({**facts, **own})}
      sheets.save_png(drawn.images[number, candidate], path, text)
      written.append(path)
  sheet = directory / 'contact_sheet.png'
  sheets.save_png(lay_out([prompt for prompt in prompts if prompt], drawn.best), sheet, None)
  return [*written, sheet]


def _slug(prompt: str) -> str:
  """The prompt's first words as part of a file name."""
  return re.sub(r'[^a-z0-9]+', '_', prompt.lower()).strip('_')[:48].strip('_') or 'prompt'


def read_facts(file: str) -> tuple[str, dict[str, Any]]:
  """The prompt of a picture that `draw` wrote, and what it was drawn with.

  Raises:
    ValueError: it is no picture, or carries nothing of the kind.
  """
  from PIL import Image

  try:
    with Image.open(file) as image:
      text = dict(getattr(image, 'text', {}))
    facts = json.loads(text['dalle_jax'])
    prompt, index = text['prompt'], facts['index']
    if not isinstance(index, int) or not 0 <= index < 2**31:
      raise ValueError(f'the index {index!r} is no number of an image')
  except (OSError, ValueError, KeyError, TypeError, Image.DecompressionBombError) as error:
    raise ValueError(
      f'--from={file} is no picture that `python -m dalle_jax.generate` wrote, or its text was removed: '
      f'{type(error).__name__}: {str(error)[:200]}'
    ) from None
  return prompt, facts


def draw_again(path: str, file: str, out: str, given: Given | None = None) -> list[Path]:
  """Draws the picture in a file again, by what it carries.

  Args:
    path: the model directory that drew it.
    file: a PNG file of `draw`.
    out: directory for the picture.
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
  names = ('seed', 'negative_prompt', 'truncate', *(field.name for field in dataclasses.fields(SamplingConfig)))
  try:
    settings = DrawSettings(num_images=1, candidates=1, whole_batches=True, **{name: facts[name] for name in names})
  except (KeyError, TypeError) as error:
    raise ValueError(f'--from={file}: its settings are damaged or of another version: {error!r}.') from None
  return draw(path, [prompt], settings, out=out, given=given, index=facts['index'])
