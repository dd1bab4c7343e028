"""Output files of `generate`: PNG files with their settings, contact sheets, previews and the page of candidates."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

import dalle_jax
from dalle_jax.config import SamplingConfig
from dalle_jax.files import make_directory
from dalle_jax.jobs.draw.given_picture import InputPicture
from dalle_jax.jobs.draw.model import Drawing, Model
from dalle_jax.jobs.draw.ranking import Scorer
from dalle_jax.reporting import gallery, sheets
from dalle_jax.reporting.sheets import lay_out
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.sampling.sampler import Preview, SampledImages

PREVIEWS, CANDIDATES = 'previews', 'candidates.html'
SHEET_IMAGES = 512  # the most images on a contact sheet
SCORE_NAMES = {
  'reranker': "the cosine of the reranker's embeddings of image and prompt",
  'likelihood': 'the log-likelihood of the image given the prompt, in nats',
  'caption_likelihood': 'the log-likelihood of the prompt given the image, in nats, up to a constant',
}


class Previews:
  """Callback that writes a contact sheet of each batch's unfinished images.

  Args:
    directory: the directory for the sheets. Previews of an earlier command are removed from it.
    prompts: the P prompts.
    count: the number of images per prompt.
  """

  def __init__(self, directory: Path, prompts: Sequence[str], count: int):
    self._directory = make_directory(str(directory))
    for old in directory.glob('*_row_*.png'):
      old.unlink()
    self._prompts, self._count = prompts, count

  def __call__(self, preview: Preview) -> None:
    prompt_indices = preview.numbers // self._count
    rows = [preview.images[prompt_indices == i] for i in range(len(self._prompts))]
    name = f'{preview.numbers[0]:06d}_row_{preview.rows:03d}.png'
    longest = max(map(len, rows))
    shown = [(self._prompts[i], _padded(row, longest)) for i, row in enumerate(rows) if len(row)]
    sheet = lay_out([prompt for prompt, _ in shown if prompt], np.stack([row for _, row in shown]))
    sheets.save_png(sheet, self._directory / name, None)


def _padded(images: np.ndarray, count: int) -> np.ndarray:
  """Images [N, H, W, 3], padded with white images to [count, H, W, 3]."""
  missing = np.full((count - len(images), *images.shape[1:]), 255, np.uint8)
  return np.concatenate([images, missing])


def carried_facts(
  model: Model, settings: DrawSettings, ranker: Scorer | None, given: InputPicture | None
) -> dict[str, Any]:
  """The facts to store in every PNG file. `ImageWriter` adds the sampling settings and each image's number."""
  facts = {
    'seed': settings.seed, 'negative_prompt': settings.negative_prompt, 'truncate': settings.truncate,
    'model': model.info.get('params', ''), 'dalle_jax_version': dalle_jax.__version__,
  }  # fmt: skip
  if given:
    facts['given'] = given.facts()
  if settings.num_drawn > settings.num_images or settings.rank:
    facts |= {'candidates': settings.num_drawn, 'rank': settings.rank or ('reranker' if ranker else 'likelihood')}
  if ranker:
    facts['reranker'] = ranker.info.get('params', '')
  return facts


class ImageWriter:
  """Writes the PNG files, either batch by batch or after ranking, and then a contact sheet.

  After ranking, it also writes a page of all candidates.

  Args:
    directory: the output directory. The page of candidates of an earlier command is removed from it.
    prompts: the P prompts.
    count: the number of images per prompt.
    index: the number under the seed, if there is only one image; None numbers the images 0, 1, ...
    again: the file name, if there is only one image; '' names files by prompt and place and adds a contact sheet.
    facts: the facts to store in every PNG file, from `carried_facts`.
  """

  def __init__(
    self, directory: Path, prompts: Sequence[str], count: int, index: int | None, again: str, facts: dict[str, Any]
  ):
    self._directory, self._prompts, self._count, self._index = directory, prompts, count, index
    self._again, self._facts = again, facts
    self._written: list[Path] = []
    (directory / CANDIDATES).unlink(missing_ok=True)  # it would show images of an earlier command

  def batch(self, numbers: np.ndarray, drawn: SampledImages, sampling: SamplingConfig) -> None:
    """Writes the PNG files of one batch; all of its images are kept."""
    for number, image in zip(numbers, drawn.images, strict=True):
      prompt_index, place = divmod(int(number), self._count)
      self._write(prompt_index, place, image, sampling, {'index': place if self._index is None else self._index})

  def ranked(self, drawn: Drawing) -> None:
    """Writes the PNG files of the best candidates and the page of all candidates."""
    scores = drawn.scores
    assert scores is not None, 'ranked candidates have scores'
    for i, candidates in enumerate(drawn.kept):
      for place, candidate in enumerate(candidates):
        image_facts = {'index': int(candidate), 'score': float(scores[i, candidate])}
        self._write(i, place, drawn.images[i, candidate], drawn.sampling, image_facts)
    page = self._directory / CANDIDATES
    gallery.write_candidates_page(
      page, [prompt or 'without a prompt' for prompt in self._prompts], drawn.images, scores, drawn.kept,
      score_name=SCORE_NAMES[self._facts['rank']], settings={**self._facts, **dataclasses.asdict(drawn.sampling)},
    )  # fmt: skip
    self._written.append(page)

  def _write(
    self, prompt_index: int, place: int, image: np.ndarray, sampling: SamplingConfig, image_facts: dict[str, Any]
  ) -> None:
    prompt = self._prompts[prompt_index]
    name = self._again or f'{prompt_index:03d}_{_slug(prompt) if prompt else "image"}_{place:03d}.png'
    facts = {**self._facts, **dataclasses.asdict(sampling), **image_facts}
    sheets.save_png(image, self._directory / name, {'prompt': prompt, 'dalle_jax': json.dumps(facts)})
    self._written.append(self._directory / name)

  def finish(self, drawn: Drawing) -> list[Path]:
    """Writes the contact sheet of the first SHEET_IMAGES images; returns all files written, the sheet last.

    With `again` there is no sheet.
    """
    if self._again:
      return self._written
    best = drawn.best[:, :SHEET_IMAGES]
    shown = best[: max(1, SHEET_IMAGES // best.shape[1])]
    if shown.shape[:2] != drawn.kept.shape:
      logging.warning(
        'The contact sheet shows only the first %d of %d images.', shown[..., 0, 0, 0].size, drawn.kept.size
      )
    sheet = self._directory / 'contact_sheet.png'
    sheets.save_png(lay_out([prompt for prompt in self._prompts[: len(shown)] if prompt], shown), sheet, None)
    return [*self._written, sheet]


def _slug(prompt: str) -> str:
  """The prompt's first words, in characters that any file name may have."""
  return re.sub(r'[^a-z0-9]+', '_', prompt.lower()).strip('_')[:48].strip('_') or 'prompt'
