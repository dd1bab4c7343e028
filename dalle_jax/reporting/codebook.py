"""The block of a page that shows how a codebook is used."""

import html
from collections.abc import Sequence

import numpy as np

from dalle_jax.reporting.blocks import drawing, format_number, paragraph
from dalle_jax.reporting.curves import curve_svg
from dalle_jax.reporting.gallery import picture

TITLE = 'Codes by rank'
MOST_POINTS = 200  # of the curve, at even distances on its logarithmic axis


def rank_frequency(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """How often codes occur, the most used first.

  Args:
    counts: how often each code occurs, [K].

  Returns:
    Ranks [M] from 1 and counts [M]: of all used codes, or, where they are many, of some at even distances of log rank.
  """
  used = np.sort(counts[counts > 0])[::-1]
  ranks = np.unique(np.geomspace(1, len(used), MOST_POINTS).round().astype(int)) if len(used) else np.empty(0, int)
  return ranks, used[ranks - 1]


def use(counts: np.ndarray, perplexity: float, codes: Sequence[int] = (), decoded: np.ndarray | None = None) -> str:
  """How often codes occur, by rank, and what the most used ones decode to.

  Args:
    counts: how often each code occurs, [K].
    perplexity: of the distribution of codes: so many codes would be used as well if all were equally likely.
    codes: ids of the codes that are shown.
    decoded: what a grid of nothing but each of them decodes to, uint8 [len(codes), H, W, 3].
  """
  total, used = int(counts.sum()), int(np.sum(counts > 0))
  facts = (
    f'{used:,} of {len(counts):,} codes are used ({100 * used / len(counts):.1f}%) in {total:,} tokens. Their '
    f'perplexity is {format_number(perplexity)}: as if that many were used equally often.'
  )
  svg = curve_svg(
    {'tokens': rank_frequency(counts)}, TITLE, 'tokens', log=True, x_label='rank, the most used code first',
    log_x=True,
  )  # fmt: skip
  parts = [paragraph(facts), f'<div class="grid curves">{drawing(TITLE, svg)}</div>']
  if decoded is not None and len(codes):
    tiles = [
      f'<figure class="tile">{picture(image, f"code {code}")}'
      f'<figcaption>{code}: {html.escape(_percent(counts[code] / max(total, 1)))}</figcaption></figure>'
      for code, image in zip(codes, decoded, strict=True)
    ]
    parts.append(paragraph('The most used codes, each as what a grid of nothing but it decodes to, with its share:'))
    parts.append(f'<div class="row tiles">{"".join(tiles)}</div>')
  return ''.join(parts)


def _percent(share: float) -> str:
  return f'{100 * share:.2g}%' if share < 0.1 else f'{100 * share:.1f}%'
