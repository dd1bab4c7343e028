"""The block of a page that shows how likely a model held every token of images and captions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dalle_jax.reporting import heat
from dalle_jax.reporting.blocks import inline_picture, paragraph, titled, token
from dalle_jax.reporting.gallery import picture


class Reading(NamedTuple):
  """An image as a model of tokens reads it."""

  title: str
  image: np.ndarray  # uint8 [H, W, 3]
  nats: np.ndarray  # [g, g], -ln p of each image token given all tokens before it
  caption: Sequence[tuple[str, float]] = ()  # tokens of text, each with its nats


def maps(readings: Sequence[Reading]) -> str:
  """Each image beside the nats of its tokens, as colours and as light on it; its caption's tokens in the same way.

  One scale of colours holds for all maps, and one of orange for all captions: from 0 to the largest finite value. Maps
  show square roots, so that small values are seen beside large ones.
  """
  most = _largest([nats for reading in readings for nats in np.ravel(reading.nats)])
  most_text = _largest([nats for reading in readings for _, nats in reading.caption])
  bar = inline_picture(heat.scale_bar(), 'colours from least to most', 'scale')
  text = (
    'What each token cost the model, −ln p given all tokens before it, at temperature 1: the picture, the nats of its '
    'tokens, and the same as light on the picture, bright where the model was surprised. Tokens come row by row.'
  )
  parts = [
    paragraph(text),
    f'<p class="note">Image tokens: 0 {bar} {most:.2f} nats, and {most / 4:.2f} in the middle</p>',
  ]
  if any(reading.caption for reading in readings):
    note = f'Tokens of captions: the deeper the orange, the dearer; the deepest is {most_text:.2f} nats.'
    parts.append(paragraph(note, 'note'))
  cards = [_card(reading, most, most_text) for reading in readings]
  return f'{"".join(parts)}<div class="row readings">{"".join(cards)}</div>'


def _card(reading: Reading, most: float, most_text: float) -> str:
  nats = np.asarray(reading.nats, np.float64)
  roots, brightest = np.sqrt(np.clip(nats, 0, most)), np.sqrt(most)
  shown = [
    picture(reading.image, reading.title),
    inline_picture(heat.heat(roots, brightest), 'nats of its tokens', 'map'),
    inline_picture(heat.lit(reading.image, roots, brightest), 'the same as light on it', 'lit'),
  ]
  total = f'image {_number(nats.sum())} nats, {_number(nats.mean())} a token, most {_number(nats.max())}'
  if reading.caption:
    total += f'; caption {_number(sum(cost for _, cost in reading.caption))} nats'
  words = [
    token(piece, min(cost, most_text) / most_text, f'{_number(cost)} nats', _number(cost))
    for piece, cost in reading.caption
  ]
  caption = f'<p class="caption">{"".join(words)}</p>' if words else ''
  return titled(
    reading.title, f'<div class="maps">{"".join(shown)}</div>{paragraph(total, "note")}{caption}', 'reading'
  )


def _largest(values: Sequence[float]) -> float:
  """The largest finite value, or 1 where none is above 0."""
  return max((float(value) for value in values if np.isfinite(value)), default=0.0) or 1.0


def _number(nats: float) -> str:
  return f'{nats:.2f}' if np.isfinite(nats) else '∞'
