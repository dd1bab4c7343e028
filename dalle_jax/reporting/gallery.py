"""Sections of a page with many pictures: reconstructions, samples by prompt, and kept and rejected candidates."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle_jax.reporting.blocks import config_details, inline_picture, paragraph, section
from dalle_jax.reporting.html import write_page

# Maximum total number of pixels in a section. Pictures of larger sections are shrunk, so that browsers can show them.
MOST_PIXELS = 4_000_000
MOST_REJECTED = 2_000  # rejected candidates on a page
THUMBNAIL = 64  # pixels: approximate shorter side of a rejected candidate; smaller pictures keep their size
ENLARGED = 128  # pixels: a picture whose longer side is at most this is enlarged, with its pixels as squares


def reconstructions(originals: np.ndarray, reconstructed: np.ndarray, psnr: np.ndarray, count: int = 18) -> str:
  """HTML that shows originals beside their reconstructions, from the worst to the best, evenly spaced in rank.

  Args:
    originals: pictures uint8 [N, H, W, 3].
    reconstructed: their reconstructions, uint8 [N, H, W, 3].
    psnr: the peak signal-to-noise ratio of each reconstruction, [N], in dB.
    count: the number of pairs to show.
  """
  order = np.argsort(psnr, kind='stable')
  shown = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
  pairs = zip(shown, _fitted(originals[shown]), _fitted(reconstructed[shown]), strict=True)
  tiles = [
    f'<figure class="tile"><div class="pair">{picture(before, f"original {i + 1}")}'
    f'{picture(after, f"reconstruction of {i + 1}")}</div><figcaption>{psnr[i]:.1f} dB</figcaption></figure>'
    for i, before, after in pairs
  ]
  note = (
    f'{len(shown)} of {len(order)} pictures, evenly spaced from the worst to the best peak signal-to-noise ratio '
    f'({psnr.min():.1f} dB to {psnr.max():.1f} dB). Originals are on the left, reconstructions on the right. The mean '
    f'of all is {psnr.mean():.1f} dB.'
  )
  return paragraph(note) + _tiles(tiles, 'wide')


def samples(
  prompts: Sequence[str], images: np.ndarray, scores: np.ndarray, note: str, right: np.ndarray | None = None
) -> str:
  """HTML that shows the images of each prompt with their scores, the best first.

  Args:
    prompts: P prompts; '' for images generated without a prompt.
    images: uint8 [P, N, H, W, 3].
    scores: [P, N], higher is better. NaN comes last.
    note: how the images were generated, and what the scores are.
    right: bool [P, N], whether a judge found everything that the prompt names. Correct images come first and have a
      green frame; the others have a red frame. None if there is no judge.

  Raises:
    ValueError: the shapes of prompts, images, scores and verdicts do not fit.
  """
  images, scores = np.asarray(images), np.asarray(scores)
  _check(prompts, images, scores)
  if right is not None and np.shape(right) != scores.shape:
    raise ValueError(f'right has shape {np.shape(right)}; it must be {scores.shape}, one verdict for each image.')
  images = _fitted(images)
  blocks = [paragraph(note)]
  if right is not None:
    count = int(np.sum(right))
    legend = (
      f'Green and ✓: the image shows everything that the prompt names ({count} of {scores.size}). Red and ✗: it does '
      'not.'
    )
    blocks.append(paragraph(legend))
  for p, prompt in enumerate(prompts):
    verdicts = None if right is None else right[p]
    order = best_first(scores[p]) if verdicts is None else _right_first(scores[p], verdicts)
    blocks.append(_prompt(prompt, [_scored(images[p, i], i, scores[p, i], verdicts) for i in order]))
  return ''.join(blocks)


def candidates(prompts: Sequence[str], images: np.ndarray, scores: np.ndarray, kept: np.ndarray) -> str:
  """HTML that shows for each prompt the kept candidates, and the rejected candidates as collapsed thumbnails.

  Args:
    prompts: P prompts; '' for images generated without a prompt.
    images: uint8 [P, N, H, W, 3].
    scores: [P, N], higher is better.
    kept: int [P, K], the indices of each prompt's kept images, the best first.

  Raises:
    ValueError: the shapes of prompts, images and scores do not fit, or `kept` has an index that does not exist or
      occurs twice.
  """
  images, scores, kept = np.asarray(images), np.asarray(scores), np.asarray(kept)
  _check(prompts, images, scores)
  count = images.shape[1]
  if kept.ndim != 2 or len(kept) != len(prompts) or np.any((kept < 0) | (kept >= count)):
    raise ValueError(
      f'kept of shape {kept.shape} must have indices of images from 0 to {count - 1} for {len(prompts)} prompts.'
    )
  if any(len(set(row)) < len(row) for row in kept.tolist()):
    raise ValueError('kept lists an image of a prompt twice; each index may occur once per prompt.')
  rejected = [np.setdiff1d(np.arange(count), row) for row in kept]
  large = _fitted(np.take_along_axis(images, kept[..., None, None, None], axis=1))
  blocks = []
  for p, prompt in enumerate(prompts):
    tiles = [_scored(large[p, k], i, scores[p, i], None, f'{k + 1}. ') for k, i in enumerate(kept[p])]
    ranked = rejected[p][best_first(scores[p, rejected[p]])]
    blocks.append(_prompt(prompt, tiles, 'large', _rejected(images[p], scores[p], ranked, len(prompts))))
  return ''.join(blocks)


def write_candidates_page(
  path: Path,
  prompts: Sequence[str],
  images: np.ndarray,
  scores: np.ndarray,
  kept: np.ndarray,
  *,
  score_name: str,
  settings: Mapping[str, Any] | None = None,
  notes: Sequence[str] = (),
) -> None:
  """Write the page that shows `candidates`, atomically.

  Args:
    path: the file to write; missing directories are created.
    prompts, images, scores, kept: see `candidates`, which also lists the errors.
    score_name: the name of the scores, such as 'log-likelihood in nats'.
    settings: the settings for sampling, shown in a collapsed table.
    notes: more paragraphs under the heading.
  """
  count = np.shape(images)[1]
  summary = f'For each prompt, {np.shape(kept)[1]} of {count} candidates were kept by {score_name} (higher is better).'
  parts = [candidates(prompts, images, scores, kept), *section('Settings', config_details(settings or {}))]
  write_page(Path(path), title='Candidates', notes=[summary, *notes], parts=parts)


def best_first(scores: np.ndarray) -> np.ndarray:
  """Indices that sort scores [N] from high to low. Ties keep their order; NaN comes last."""
  return np.argsort(-np.asarray(scores, np.float64), kind='stable')


def score_text(score: float) -> str:
  """Format a score for the line below a picture, with fewer decimals for larger scores."""
  if not math.isfinite(score):
    return '–'
  decimals = 3 if abs(score) < 10 else 1 if abs(score) < 1000 else 0
  return f'{score:,.{decimals}f}'.replace('-', '−')


def picture(image: np.ndarray, alt: str, style: str = '') -> str:
  """An <img> of pixels uint8 [H, W, 3]. A small picture is enlarged, with its pixels as squares."""
  small = 'pixelated' if max(image.shape[:2]) <= ENLARGED else ''
  return inline_picture(Image.fromarray(image), alt, f'{small} {style}'.strip())


def _check(prompts: Sequence[str], images: np.ndarray, scores: np.ndarray) -> None:
  if images.ndim != 5 or images.dtype != np.uint8 or len(images) != len(prompts) or scores.shape != images.shape[:2]:
    raise ValueError(
      f'{len(prompts)} prompts, images {images.dtype} {images.shape} and scores {scores.shape} do not fit; P '
      'prompts need images uint8 [P, N, H, W, 3] and scores [P, N].'
    )


def _right_first(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
  order = best_first(scores)
  return order[np.argsort(~right[order], kind='stable')]


def _prompt(prompt: str, tiles: Sequence[str], style: str = '', after: str = '') -> str:
  heading = f'<h3>{html.escape(prompt)}</h3>' if prompt else ''
  return f'<div class="prompt">{heading}{_tiles(tiles, style)}{after}</div>'


def _tiles(tiles: Sequence[str], style: str = '') -> str:
  return f'<div class="{f"row tiles {style}".strip()}">{"".join(tiles)}</div>'


def _scored(image: np.ndarray, number: int, score: float, right: np.ndarray | None = None, before: str = '') -> str:
  """A picture with its score and, if `right` has verdicts [N], its verdict.

  `number` is the picture's index among the images of its prompt.
  """
  frame, mark = ('', '') if right is None else ('right', '✓ ') if right[number] else ('wrong', '✗ ')
  caption = f'{before}{mark}{score_text(float(score))}'
  img = picture(image, f'image {number + 1}', frame)
  return f'<figure class="tile">{img}<figcaption>{html.escape(caption)}</figcaption></figure>'


def _rejected(images: np.ndarray, scores: np.ndarray, order: np.ndarray, num_prompts: int) -> str:
  """The rejected candidates of one prompt, collapsed; only the best of them if the page would have too many."""
  if not len(order):
    return ''
  shown = order[: max(1, MOST_REJECTED // num_prompts)]
  small = _shrunk(images[shown], min(images.shape[1:3]) // THUMBNAIL)
  tiles = [_scored(image, i, scores[i]) for image, i in zip(small, shown, strict=True)]
  summary = f'{len(order)} not kept' + (f'; the best {len(shown)} are shown' if len(shown) < len(order) else '')
  return f'<details><summary>{summary}</summary>{_tiles(tiles, "small")}</details>'


def _fitted(images: np.ndarray) -> np.ndarray:
  """Shrink pictures uint8 [..., H, W, 3] by an integer factor if they have more than MOST_PIXELS pixels in total."""
  return _shrunk(images, math.ceil(math.sqrt(images.size / 3 / MOST_PIXELS)))


def _shrunk(images: np.ndarray, factor: int) -> np.ndarray:
  """Shrink pictures uint8 [..., H, W, 3]: each square of `factor` x `factor` pixels becomes its mean."""
  if factor <= 1:
    return images
  flat = [np.asarray(Image.fromarray(image).reduce(factor)) for image in images.reshape(-1, *images.shape[-3:])]
  return np.stack(flat).reshape(*images.shape[:-3], *flat[0].shape)
