"""Output files of `generate`: PNG files with their settings, contact sheets, previews and the page of candidates."""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

import dalle_jax
from dalle_jax.config import SamplingConfig
from dalle_jax.jobs.draw.given_picture import InputPicture
from dalle_jax.jobs.draw.model import Drawing, Model
from dalle_jax.jobs.draw.ranking import Scorer
from dalle_jax.reporting import gallery, sheets
from dalle_jax.reporting.sheets import lay_out
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.sampling.sampler import Preview, SampledImages

PREVIEWS = 'previews'
SHEET_IMAGES = 512  # the most images on a contact sheet
SCORE_NAMES = {
  'reranker': "the cosine of the reranker's embeddings of image and prompt",
  'likelihood': 'the log-likelihood of the image given the prompt, in nats',
  'caption_likelihood': 'the log-likelihood of the prompt given the image, in nats, up to a constant',
}


@dataclasses.dataclass(frozen=True)
class DrawnNames:
  """The names of the files that a command writes. They hold the prompt and the seed, so that another seed adds files.

  Args:
    directory: the output directory.
    prompts: the P prompts.
    seed: the seed.
    again: the file name of the only image, which gets no sheet; '' names files by prompt, seed and place.
  """

  directory: Path
  prompts: Sequence[str]
  seed: int
  again: str = ''

  def image(self, prompt_index: int, place: int) -> Path:
    """The PNG file of an image: NNN_PROMPT_seedS_NNN.png, with the numbers of the prompt and of the image."""
    slug = _slug(self.prompts[prompt_index])
    return self.directory / (self.again or f'{prompt_index:03d}_{slug}_seed{self.seed}_{place:03d}.png')

  @property
  def sheet(self) -> Path:
    return self.directory / f'contact_sheet_{_slug(self.prompts[0])}_seed{self.seed}.png'

  @property
  def candidates(self) -> Path:
    return self.directory / f'candidates_{_slug(self.prompts[0])}_seed{self.seed}.html'

  @property
  def previews(self) -> Path:
    """The beginning of the names of all previews."""
    return self.directory / PREVIEWS / f'{_slug(self.prompts[0])}_seed{self.seed}_'

  def earlier_previews(self) -> list[Path]:
    """The previews of an earlier command that have these names."""
    directory = self.previews.parent
    files = directory.iterdir() if directory.is_dir() else ()
    return [file for file in files if file.name.startswith(self.previews.name)]

  def all(self, kept: int, ranked: bool) -> Iterator[Path]:
    """The files that a command writes; previews, of which any number may exist, are not among them.

    Args:
      kept: images kept per prompt.
      ranked: whether candidates are ranked.
    """
    yield from (self.image(index, place) for index in range(len(self.prompts)) for place in range(kept))
    if not self.again:
      yield from (self.candidates, self.sheet) if ranked else (self.sheet,)


class Previews:
  """Callback that writes a contact sheet of each batch's unfinished images.

  Args:
    names: names the sheets, in a directory that exists. Previews of an earlier command with these names are removed.
    count: the number of images per prompt.
  """

  def __init__(self, names: DrawnNames, count: int):
    for path in names.earlier_previews():
      path.unlink()
    self._names, self._prompts, self._count = names, names.prompts, count

  def __call__(self, preview: Preview) -> None:
    prompt_indices = preview.numbers // self._count
    rows = [preview.images[prompt_indices == i] for i in range(len(self._prompts))]
    beginning = self._names.previews
    path = beginning.with_name(f'{beginning.name}{preview.numbers[0]:06d}_row_{preview.rows:03d}.png')
    longest = max(map(len, rows))
    shown = [(self._prompts[i], _padded(row, longest)) for i, row in enumerate(rows) if len(row)]
    sheet = lay_out([prompt for prompt, _ in shown if prompt], np.stack([row for _, row in shown]))
    sheets.save_png(sheet, path, None)


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
    names: the names of the files. A page of candidates of an earlier command with the same name is removed.
    count: the number of images per prompt.
    index: the number under the seed, if there is only one image; None numbers the images 0, 1, ...
    facts: the facts to store in every PNG file, from `carried_facts`.
  """

  def __init__(self, names: DrawnNames, count: int, index: int | None, facts: dict[str, Any]):
    self._names, self._prompts, self._count, self._index, self._facts = names, names.prompts, count, index, facts
    self._written: list[Path] = []
    if not names.again:
      names.candidates.unlink(missing_ok=True)  # it would show other images than the PNG files

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
    page = self._names.candidates
    gallery.write_candidates_page(
      page, [prompt or 'without a prompt' for prompt in self._prompts], drawn.images, scores, drawn.kept,
      score_name=SCORE_NAMES[self._facts['rank']], settings={**self._facts, **dataclasses.asdict(drawn.sampling)},
    )  # fmt: skip
    self._written.append(page)

  def _write(
    self, prompt_index: int, place: int, image: np.ndarray, sampling: SamplingConfig, image_facts: dict[str, Any]
  ) -> None:
    prompt, path = self._prompts[prompt_index], self._names.image(prompt_index, place)
    facts = {**self._facts, **dataclasses.asdict(sampling), **image_facts}
    sheets.save_png(image, path, {'prompt': prompt, 'dalle_jax': json.dumps(facts)})
    self._written.append(path)

  def finish(self, drawn: Drawing) -> list[Path]:
    """Writes the contact sheet of the first SHEET_IMAGES images; returns all files written, the sheet last.

    An image that is generated again gets no sheet.
    """
    if self._names.again:
      return self._written
    best = drawn.best[:, :SHEET_IMAGES]
    shown = best[: max(1, SHEET_IMAGES // best.shape[1])]
    if shown.shape[:2] != drawn.kept.shape:
      logging.warning(
        'The contact sheet shows only the first %d of %d images.', shown[..., 0, 0, 0].size, drawn.kept.size
      )
    sheet = self._names.sheet
    sheets.save_png(lay_out([prompt for prompt in self._prompts[: len(shown)] if prompt], shown), sheet, None)
    return [*self._written, sheet]


def _slug(prompt: str) -> str:
  """The prompt's first words, in characters that any file name may have; 'image' without a prompt."""
  if not prompt:
    return 'image'
  return re.sub(r'[^a-z0-9]+', '_', prompt.lower()).strip('_')[:48].strip('_') or 'prompt'
