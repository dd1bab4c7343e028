"""Generate images with a trained model and write them as PNG files and a contact sheet."""

from collections.abc import Sequence
from pathlib import Path

from dalle_jax import bundle
from dalle_jax.bundle import drawing_parts
from dalle_jax.config import MeshConfig
from dalle_jax.data.text.caption_text import check_prompt
from dalle_jax.files import check_new, make_directory, reason, shown
from dalle_jax.jobs.draw.drawn_files import DrawnNames, ImageWriter, Previews, carried_facts
from dalle_jax.jobs.draw.given_picture import InputPicture
from dalle_jax.jobs.draw.model import Model, load
from dalle_jax.jobs.draw.ranking import Scorer
from dalle_jax.sampling import memory, sampler
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.training.progress import Progress

LARGEST_PROMPTS_FILE = 16 * 2**20  # bytes
LEAST_PNG_BYTES = 512  # of a PNG file with its settings


def read_prompts(prompts: Sequence[str], prompts_file: str) -> list[str]:
  """The prompts of the command line, followed by the prompts of a file.

  Args:
    prompts: the values of --prompt.
    prompts_file: a UTF-8 file with one prompt per line, whose empty lines are skipped; '' for no file.

  Raises:
    ValueError: there is no prompt, a prompt is empty or not valid UTF-8, or the file cannot be read.
  """
  all_prompts = list(prompts)
  if prompts_file:
    all_prompts += [line.strip() for line in _read_text(prompts_file).split('\n') if line.strip()]
  if not all_prompts:
    raise ValueError(
      'No prompt was given; use --prompt="..." (repeatable), or --prompts_file=FILE with one prompt per line.'
    )
  if any(not prompt.strip() for prompt in all_prompts):
    raise ValueError('A prompt is empty; --prompt needs at least one word.')
  for number, prompt in enumerate(all_prompts):
    check_prompt(prompt, '--prompt' if number < len(prompts) else f'--prompts_file={shown(prompts_file)}')
  return all_prompts


def _read_text(file: str) -> str:
  """The text of --prompts_file, which may also be a pipe."""
  try:
    with Path(file).open('rb') as stream:
      content = stream.read(LARGEST_PROMPTS_FILE + 1)
    if len(content) > LARGEST_PROMPTS_FILE:
      raise ValueError(f'it has more than {LARGEST_PROMPTS_FILE // 2**20} MB; split it')
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'--prompts_file {shown(file)} cannot be read: it is not UTF-8 text (byte {error.start}); save it as UTF-8.'
    ) from None
  except (OSError, ValueError) as error:
    raise ValueError(f'--prompts_file {shown(file)} cannot be read: {reason(error)}. Name a text file.') from None


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
  overwrite: bool = False,
) -> list[Path]:
  """Generates images for each prompt; writes the kept images and a contact sheet.

  Args:
    path: the model directory.
    prompts: the prompts; [''] if the model reads no captions, or to complete or vary an image without a caption.
    settings: the sampling settings, the number of images and the ranking.
    out: the directory for the images.
    given: the input image to complete or to vary, if any.
    index: the number of the only image to generate under the seed; None for all images.
    reranker: the model directory of the reranker that ranks candidates; '' for none.
    preview_every: rows of tokens between two sheets of unfinished images in OUT/previews/; 0 for no sheets.
    mesh_config: the device mesh; None splits the batch over all devices.
    again: the file name of the only image, which then gets no contact sheet; '' names files by prompt and place.
    overwrite: whether files of the same names, from an earlier command, are replaced.

  Returns:
    The files written: images, then the page of all candidates if they were ranked, then the contact sheet.

  Raises:
    ValueError: the model, a prompt, the input image or a setting cannot be used, a file exists, or space is short.
  """
  drawing_parts(path)
  if reranker:
    bundle.check(Path(reranker), needs=('reranker',), flag='--reranker')
  if preview_every < 0:
    raise ValueError(f'--preview_every is {preview_every}; give a number of rows of tokens, or 0 for no previews.')
  count = settings.num_drawn if index is None else 1
  check_settings(path, settings, len(prompts) * count)
  names = _check_outputs(out, prompts, settings, given, index, again, overwrite, preview_every > 0)
  model = load(path, mesh_config)
  ranker = _load_reranker(reranker, model)
  known = given.known(model) if given else None
  settings = model.effective(settings, known)
  count = settings.num_drawn if index is None else 1
  previews = Previews(names, count) if preview_every else None
  writer = ImageWriter(names, count, index, carried_facts(model, settings, ranker, given))
  with Progress('sampling', len(prompts) * count * model.config.image_length, 'token') as progress:
    progress.message('compiling')
    drawn = model.draw(
      prompts, settings, known=known, index=None if index is None else [index], reranker=ranker,
      progress=progress.update_of, preview=previews, preview_every=max(preview_every, 1),
      finished=None if settings.is_ranked else writer.batch,
    )  # fmt: skip
  if settings.is_ranked:
    writer.ranked(drawn)
  return writer.finish(drawn)


def check_settings(path: str, settings: DrawSettings, num_images: int) -> None:
  """Check that settings and a number of images fit a model of images and the memory, before the model is loaded.

  Raises:
    ValueError: they do not fit.
  """
  config = bundle.read_config(Path(path))
  merged = settings.sampling(config.sampling, settings.num_drawn)
  sampler.check_settings(merged, config.dvae.image_vocab_size, bundle.takes_prompts(path))
  memory.check_images(num_images, config)


def _check_outputs(
  out: str,
  prompts: Sequence[str],
  settings: DrawSettings,
  given: InputPicture | None,
  index: int | None,
  again: str,
  overwrite: bool,
  has_previews: bool,
) -> DrawnNames:
  """Makes the output directory and checks its space and that no file would be replaced; the arguments are `draw`'s."""
  num_kept = settings.num_images if index is None else 1
  directory = make_directory(out, size=LEAST_PNG_BYTES * len(prompts) * num_kept)
  names = DrawnNames(directory, prompts, settings.seed, again)
  check_new(names.all(num_kept, settings.is_ranked or given is not None), overwrite)
  if has_previews:
    make_directory(str(names.previews.parent))
    check_new(names.earlier_previews(), overwrite)
  return names


def _load_reranker(reranker: str, model: Model) -> Scorer | None:
  if not reranker:
    return None
  from dalle_jax.jobs import ranker

  return ranker.load(reranker, model.mesh)
