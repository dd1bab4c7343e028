"""Drawing images for prompts, or without, with a trained model, into PNG files and a contact sheet."""

from collections.abc import Sequence
from pathlib import Path

from dalle_jax import bundle
from dalle_jax.bundle import drawing_parts
from dalle_jax.config import MeshConfig
from dalle_jax.files import make_directory
from dalle_jax.jobs.draw.drawn_files import PREVIEWS, ImageWriter, Previews, carried_facts
from dalle_jax.jobs.draw.given_picture import InputPicture
from dalle_jax.jobs.draw.model import Model, load
from dalle_jax.jobs.draw.ranking import Scorer
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.training.progress import Progress


def read_prompts(prompts: Sequence[str], prompts_file: str) -> list[str]:
  """Prompts from the command line followed by those of a file, one a line (empty lines are skipped).

  Raises:
    ValueError: there are none, one is empty, or the file cannot be read.
  """
  found = list(prompts)
  if prompts_file:
    try:
      lines = Path(prompts_file).read_text(encoding='utf-8-sig').split('\n')
    except (OSError, UnicodeDecodeError) as error:
      raise ValueError(f'--prompts_file {prompts_file} cannot be read: {error}') from None
    found += [line.strip() for line in lines if line.strip()]
  if not found:
    raise ValueError('No prompt was given; use --prompt="..." (repeatable) or --prompts_file=FILE with one a line.')
  if any(not prompt.strip() for prompt in found):
    raise ValueError('A prompt is empty; --prompt needs at least one word.')
  for prompt in found:
    try:
      prompt.encode()
    except UnicodeEncodeError:
      raise ValueError(f'A prompt is not valid UTF-8: {prompt[:80]!r} (--prompt).') from None
  return found


def draw(
  path: str,
  prompts: Sequence[str],
  settings: DrawSettings,
  *,
  out: str,
  given: InputPicture | None = None,
  index: int | None = None,
  reranker: str = '',
  preview_every: int = 0,
  mesh_config: MeshConfig | None = None,
  again: str = '',
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
    again: the name of the only picture, which is written alone; '' for names by prompt and place, and a sheet.

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
  directory = make_directory(out)
  model = load(path, mesh_config)
  ranker = _load_reranker(reranker, model)
  known = given.known(model) if given else None
  settings = model.effective(settings, known)
  count = settings.num_drawn if index is None else 1
  previews = Previews(directory / PREVIEWS, prompts, count) if preview_every else None
  ranked = bool(settings.rank) or settings.num_drawn > settings.num_images
  writer = ImageWriter(directory, prompts, count, index, again, carried_facts(model, settings, ranker, given))
  with Progress('drawing', len(prompts) * count * model.config.image_length, 'token') as progress:
    progress.message('compiling')
    drawn = model.draw(
      prompts, settings, known=known, index=None if index is None else [index], reranker=ranker,
      progress=progress.update_of, preview=previews, preview_every=max(preview_every, 1),
      finished=None if ranked else writer.batch,
    )  # fmt: skip
  if ranked:
    writer.ranked(drawn)
  return writer.finish(drawn)


def _load_reranker(reranker: str, model: Model) -> Scorer | None:
  if not reranker:
    return None
  from dalle_jax.jobs import ranker

  return ranker.load(reranker, model.mesh)
