"""The files of drawing: pictures with what they carry, sheets, previews, and the page of candidates."""

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
SHEET_IMAGES = 512  # at most on a contact sheet
SCORE_NAMES = {
  'reranker': "the cosine of the reranker's embeddings of image and prompt",
  'likelihood': 'the log-likelihood of the image given the prompt, in nats',
  'caption_likelihood': 'the log-likelihood of the prompt given the image, in nats, but for a constant',
}


class Previews:
  """Writes a sheet of the images so far, for each batch and number of rows."""

  def __init__(self, directory: Path, prompts: Sequence[str], count: int):
    self._directory = make_directory(str(directory))
    for old in directory.glob('*_row_*.png'):
      old.unlink()
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


def carried_facts(
  model: Model, settings: DrawSettings, ranker: Scorer | None, given: InputPicture | None
) -> dict[str, Any]:
  """What every picture carries, besides its number and the settings of sampling, to be drawn again."""
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
  """Writes pictures as they come, or once they are ranked, and what shows them together."""

  def __init__(
    self, directory: Path, prompts: Sequence[str], count: int, index: int | None, again: str, facts: dict[str, Any]
  ):
    self._directory, self._prompts, self._count, self._index = directory, prompts, count, index
    self._again, self._facts = again, facts
    self._written: list[Path] = []
    (directory / CANDIDATES).unlink(missing_ok=True)  # of an earlier command, whose pictures are replaced

  def batch(self, numbers: np.ndarray, drawn: SampledImages, sampling: SamplingConfig) -> None:
    """PNG files of a batch, whose images all are kept."""
    for number, image in zip(numbers, drawn.images, strict=True):
      prompt, place = divmod(int(number), self._count)
      self._write(prompt, place, image, sampling, {'index': place if self._index is None else self._index})

  def ranked(self, drawn: Drawing) -> None:
    """PNG files of the best, and the page of all candidates."""
    for prompt, best in enumerate(drawn.kept):
      for place, candidate in enumerate(best):
        own = {'index': int(candidate), 'score': float(drawn.scores[prompt, candidate])}
        self._write(prompt, place, drawn.images[prompt, candidate], drawn.sampling, own)
    page = self._directory / CANDIDATES
    gallery.write_candidates_page(
      page, [prompt or 'without a prompt' for prompt in self._prompts], drawn.images, drawn.scores, drawn.kept,
      score_name=SCORE_NAMES[self._facts['rank']], settings={**self._facts, **dataclasses.asdict(drawn.sampling)},
    )  # fmt: skip
    self._written.append(page)

  def _write(self, prompt: int, place: int, image: np.ndarray, sampling: SamplingConfig, own: dict[str, Any]) -> None:
    words = self._prompts[prompt]
    name = self._again or f'{prompt:03d}_{_slug(words) if words else "image"}_{place:03d}.png'
    facts = {**self._facts, **dataclasses.asdict(sampling), **own}
    sheets.save_png(image, self._directory / name, {'prompt': words, 'dalle_jax': json.dumps(facts)})
    self._written.append(self._directory / name)

  def finish(self, drawn: Drawing) -> list[Path]:
    """All files written, with the contact sheet, of the first SHEET_IMAGES images, as the last."""
    if self._again:
      return self._written
    best = drawn.best[:, :SHEET_IMAGES]
    shown = best[: max(1, SHEET_IMAGES // best.shape[1])]
    if shown.shape[:2] != drawn.kept.shape:
      logging.warning('The contact sheet has the first %d of %d images.', shown[..., 0, 0, 0].size, drawn.kept.size)
    sheet = self._directory / 'contact_sheet.png'
    sheets.save_png(lay_out([prompt for prompt in self._prompts[: len(shown)] if prompt], shown), sheet, None)
    return [*self._written, sheet]


def _slug(prompt: str) -> str:
  """The prompt's first words as part of a file name."""
  return re.sub(r'[^a-z0-9]+', '_', prompt.lower()).strip('_')[:48].strip('_') or 'prompt'
