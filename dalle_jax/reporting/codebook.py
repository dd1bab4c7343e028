"""The section of a report about the use of the codebook."""

import html
from collections.abc import Sequence

import numpy as np

from dalle_jax.reporting.blocks import drawing, format_number, paragraph
from dalle_jax.reporting.curves import curve_svg
from dalle_jax.reporting.gallery import picture

TITLE = 'Codes by rank'
MOST_POINTS = 200  # points of the curve, evenly spaced on its logarithmic axis


def rank_frequency(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The counts of the used codes by rank; rank 1 is the most used code.

  Args:
    counts: how often each code occurs, [K].

  Returns:
    Ranks [M] and counts [M]. If there are many used codes, only some are returned, evenly spaced in log rank.
  """
  used = np.sort(counts[counts > 0])[::-1]
  ranks = np.unique(np.geomspace(1, len(used), MOST_POINTS).round().astype(int)) if len(used) else np.empty(0, int)
  return ranks, used[ranks - 1]


def use(counts: np.ndarray, perplexity: float, codes: Sequence[int] = (), decoded: np.ndarray | None = None) -> str:
  """HTML that shows how often codes occur, by rank, and what the most used codes decode to.

  Args:
    counts: how often each code occurs, [K].
    perplexity: the perplexity of the distribution of codes, from 1 to K.
    codes: ids of the codes to show.
    decoded: for each code to show, the image that a grid filled with this code decodes to, uint8 [len(codes), H, W, 3].
  """
  total, used = int(counts.sum()), int(np.sum(counts > 0))
  facts = (
    f'{used:,} of {len(counts):,} codes are used ({100 * used / len(counts):.1f}%) in {total:,} tokens. The perplexity '
    f'of their distribution is {format_number(perplexity)}.'
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
    parts.append(paragraph('The most used codes and their shares. Each image decodes a grid filled with one code:'))
    parts.append(f'<div class="row tiles">{"".join(tiles)}</div>')
  return ''.join(parts)


def _percent(share: float) -> str:
  return f'{100 * share:.2g}%' if share < 0.1 else f'{100 * share:.1f}%'
