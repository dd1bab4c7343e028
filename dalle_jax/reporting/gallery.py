"""Blocks of a page that show many pictures: reconstructions, samples by prompt, candidates kept and rejected."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle_jax.reporting.blocks import config_details, inline_picture, paragraph, section
from dalle_jax.reporting.html import write_page

MOST_PIXELS = 4_000_000  # of all pictures of a block: beyond it they are made smaller, so that a browser likes the page
MOST_REJECTED = 2_000  # pictures of a page of candidates
THUMBNAIL = 64  # pixels: the shorter side of a rejected candidate, about; a small one stays as it is
ENLARGED = 128  # pixels: up to this side a picture is shown larger than it is, and its pixels as squares


def reconstructions(originals: np.ndarray, reconstructed: np.ndarray, psnr: np.ndarray, count: int = 18) -> str:
  """Originals, each beside its reconstruction, from the worst to the best, at even distances of rank.

  Args:
    originals: uint8 [N, H, W, 3].
    reconstructed: uint8 [N, H, W, 3].
    psnr: of each, [N], in dB.
    count: how many of them are shown.
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
    f'Originals on the left, reconstructions on the right, by peak signal-to-noise ratio: {len(shown)} of '
    f'{len(order)}, from the worst, {psnr.min():.1f} dB, to the best, {psnr.max():.1f} dB, at even distances in this '
    f'order. The mean of all is {psnr.mean():.1f} dB.'
  )
  return paragraph(note) + _tiles(tiles, 'wide')


def samples(
  prompts: Sequence[str], images: np.ndarray, scores: np.ndarray, note: str, right: np.ndarray | None = None
) -> str:
  """The images of each prompt, the best first, each with its score.

  Args:
    prompts: P texts; '' for images drawn without one.
    images: uint8 [P, N, H, W, 3].
    scores: [P, N], the higher the better; what is not a number comes last.
    note: how they were drawn, and what the scores are.
    right: bool [P, N], whether a judge found all that the prompt names: right ones come first and are framed green, the
      others red.

  Raises:
    ValueError: the numbers of prompts, images, scores and verdicts do not fit.
  """
  images, scores = np.asarray(images), np.asarray(scores)
  _check(prompts, images, scores)
  if right is not None and np.shape(right) != scores.shape:
    raise ValueError(f'right has shape {np.shape(right)}; it must be {scores.shape}, one verdict for each image.')
  images = _fitted(images)
  blocks = [paragraph(note)]
  if right is not None:
    count = int(np.sum(right))
    words = f'Green and ✓: all that the prompt names was found in the image ({count} of {scores.size}). Red and ✗: not.'
    blocks.append(paragraph(words))
  for p, prompt in enumerate(prompts):
    verdicts = None if right is None else right[p]
    order = best_first(scores[p]) if verdicts is None else _right_first(scores[p], verdicts)
    blocks.append(_prompt(prompt, [_scored(images[p, i], i, scores[p, i], verdicts) for i in order]))
  return ''.join(blocks)


def candidates(prompts: Sequence[str], images: np.ndarray, scores: np.ndarray, kept: np.ndarray) -> str:
  """For each prompt the candidates that were kept, large, and the others, small and folded away, best first.

  Args:
    prompts: P texts; '' for images drawn without one.
    images: uint8 [P, N, H, W, 3].
    scores: [P, N], the higher the better.
    kept: int [P, K], of each prompt the numbers of the kept images, the best first.

  Raises:
    ValueError: the numbers of prompts, images and scores do not fit, or `kept` names an image that is not there, or one
      twice.
  """
  images, scores, kept = np.asarray(images), np.asarray(scores), np.asarray(kept)
  _check(prompts, images, scores)
  count = images.shape[1]
  if kept.ndim != 2 or len(kept) != len(prompts) or np.any((kept < 0) | (kept >= count)):
    raise ValueError(f'kept of shape {kept.shape} must name images from 0 to {count - 1} for {len(prompts)} prompts.')
  if any(len(set(row)) < len(row) for row in kept.tolist()):
    raise ValueError('kept names an image of a prompt twice.')
  rejected = [np.setdiff1d(np.arange(count), row) for row in kept]
  large = _fitted(np.take_along_axis(images, kept[..., None, None, None], axis=1))
  blocks = []
  for p, prompt in enumerate(prompts):
    tiles = [_scored(large[p, k], i, scores[p, i], None, f'{k + 1}. ') for k, i in enumerate(kept[p])]
    left = rejected[p][best_first(scores[p, rejected[p]])]
    blocks.append(_prompt(prompt, tiles, 'large', _rejected(images[p], scores[p], left, len(prompts))))
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
  """Writes a page of `candidates`, as a whole or not at all.

  Args:
    path: the file; missing directories are made.
    prompts, images, scores, kept: as for `candidates`, which says what is raised.
    score_name: what the scores are, such as 'log-likelihood in nats'.
    settings: with which they were drawn, shown folded.
    notes: further paragraphs under the heading.
  """
  count = np.shape(images)[1]
  words = (
    f'{np.shape(kept)[1]} of {count} candidates were kept for each prompt, by {score_name}: the higher the better.'
  )
  parts = [candidates(prompts, images, scores, kept), *section('Settings', config_details(settings or {}))]
  write_page(Path(path), title='Candidates', notes=[words, *notes], parts=parts)


def best_first(scores: np.ndarray) -> np.ndarray:
  """The order of scores [N] from the highest to the lowest: equal ones as they come, what is not a number last."""
  return np.argsort(-np.asarray(scores, np.float64), kind='stable')


def score_text(score: float) -> str:
  """A score as it stands below a picture: with three decimals, or one, or none where it is large."""
  if not math.isfinite(score):
    return '–'
  decimals = 3 if abs(score) < 10 else 1 if abs(score) < 1000 else 0
  return f'{score:,.{decimals}f}'.replace('-', '−')


def picture(image: np.ndarray, alt: str, style: str = '') -> str:
  """An <img> of pixels uint8 [H, W, 3]; small ones are enlarged as squares."""
  small = 'pixelated' if max(image.shape[:2]) <= ENLARGED else ''
  return inline_picture(Image.fromarray(image), alt, f'{small} {style}'.strip())


def _check(prompts: Sequence[str], images: np.ndarray, scores: np.ndarray) -> None:
  if images.ndim != 5 or images.dtype != np.uint8 or len(images) != len(prompts) or scores.shape != images.shape[:2]:
    raise ValueError(
      f'{len(prompts)} prompts, images {images.dtype} {images.shape} and scores {scores.shape} do not fit: for P '
      'prompts there must be images uint8 [P, N, H, W, 3] and scores [P, N].'
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
  """A picture and its score; `number` is its place among the prompt's."""
  frame, mark = ('', '') if right is None else ('right', '✓ ') if right[number] else ('wrong', '✗ ')
  words = f'{before}{mark}{score_text(float(score))}'
  shown = picture(image, f'image {number + 1}', frame)
  return f'<figure class="tile">{shown}<figcaption>{html.escape(words)}</figcaption></figure>'


def _rejected(images: np.ndarray, scores: np.ndarray, order: np.ndarray, num_prompts: int) -> str:
  """The rejected candidates of one prompt, folded; where the page would have too many, the best of them."""
  if not len(order):
    return ''
  shown = order[: max(1, MOST_REJECTED // num_prompts)]
  small = _shrunk(images[shown], min(images.shape[1:3]) // THUMBNAIL)
  tiles = [_scored(image, i, scores[i]) for image, i in zip(small, shown, strict=True)]
  words = f'{len(order)} not kept' + (f', the best {len(shown)} of them' if len(shown) < len(order) else '')
  return f'<details><summary>{words}</summary>{_tiles(tiles, "small")}</details>'


def _fitted(images: np.ndarray) -> np.ndarray:
  """Pictures uint8 [..., H, W, 3], made smaller by a whole factor where all of them have too many pixels."""
  return _shrunk(images, math.ceil(math.sqrt(images.size / 3 / MOST_PIXELS)))


def _shrunk(images: np.ndarray, factor: int) -> np.ndarray:
  """Pictures uint8 [..., H, W, 3], each square of `factor` pixels by its mean."""
  if factor <= 1:
    return images
  flat = [np.asarray(Image.fromarray(image).reduce(factor)) for image in images.reshape(-1, *images.shape[-3:])]
  return np.stack(flat).reshape(*images.shape[:-3], *flat[0].shape)
