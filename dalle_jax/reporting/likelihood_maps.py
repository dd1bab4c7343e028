"""The section of a page that shows the likelihood of each token of images and captions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dalle_jax.reporting import heat
from dalle_jax.reporting.blocks import inline_picture, paragraph, titled, token
from dalle_jax.reporting.gallery import picture


class Reading(NamedTuple):
  """An image with the likelihood of its tokens under a model."""

  title: str
  image: np.ndarray  # uint8 [H, W, 3]
  nats: np.ndarray  # [g, g], -ln p of each image token given all earlier tokens
  caption: Sequence[tuple[str, float]] = ()  # the caption's tokens as text, each with its nats


def maps(readings: Sequence[Reading]) -> str:
  """HTML that shows each image beside maps of the nats of its tokens, and the nats of its caption's tokens.

  All maps share one colour scale, and all captions share one scale of orange, from 0 to the largest finite value. Maps
  show square roots, so that small values are visible beside large values.
  """
  most = _largest([nats for reading in readings for nats in np.ravel(reading.nats)])
  most_text = _largest([nats for reading in readings for _, nats in reading.caption])
  bar = inline_picture(heat.scale_bar(), 'colour scale, from low to high', 'scale')
  text = (
    'The negative log-likelihood of each token, −ln p given all earlier tokens, at temperature 1. From left to right: '
    'the picture, a map of the nats of its tokens, and the picture with brighter parts where the model was surprised. '
    'Tokens are in raster order.'
  )
  parts = [
    paragraph(text),
    f'<p class="note">Image tokens: 0 {bar} {most:.2f} nats; the middle is {most / 4:.2f} nats</p>',
  ]
  if any(reading.caption for reading in readings):
    note = f'Caption tokens: a stronger orange means more nats; the strongest is {most_text:.2f} nats.'
    parts.append(paragraph(note, 'note'))
  cards = [_card(reading, most, most_text) for reading in readings]
  return f'{"".join(parts)}<div class="row readings">{"".join(cards)}</div>'


def _card(reading: Reading, most: float, most_text: float) -> str:
  nats = np.asarray(reading.nats, np.float64)
  roots, brightest = np.sqrt(np.clip(nats, 0, most)), np.sqrt(most)
  pictures = [
    picture(reading.image, reading.title),
    inline_picture(heat.heat(roots, brightest), 'nats of its tokens', 'map'),
    inline_picture(heat.lit(reading.image, roots, brightest), 'the same as brightness', 'lit'),
  ]
  total = f'image {_number(nats.sum())} nats, {_number(nats.mean())} per token, maximum {_number(nats.max())}'
  if reading.caption:
    total += f'; caption {_number(sum(cost for _, cost in reading.caption))} nats'
  tokens = [
    token(piece, min(cost, most_text) / most_text, f'{_number(cost)} nats', _number(cost))
    for piece, cost in reading.caption
  ]
  caption = f'<p class="caption">{"".join(tokens)}</p>' if tokens else ''
  return titled(
    reading.title, f'<div class="maps">{"".join(pictures)}</div>{paragraph(total, "note")}{caption}', 'reading'
  )


def _largest(values: Sequence[float]) -> float:
  """The largest finite value, or 1 if no finite value is above 0."""
  return max((float(value) for value in values if np.isfinite(value)), default=0.0) or 1.0


def _number(nats: float) -> str:
  return f'{nats:.2f}' if np.isfinite(nats) else '∞'
