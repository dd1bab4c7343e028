"""The page of what a transformer attended to: one HTML file that needs nothing but a browser."""

import base64
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dalle_jax.reporting import heat
from dalle_jax.reporting.attention_script import SCRIPT, STYLE
from dalle_jax.reporting.blocks import inline_picture, paragraph, section, titled, token
from dalle_jax.reporting.html import write_page

SLOTS = (
  'Slot t predicts token t. It holds the token before it, and attends to itself and to slots before it. So "token A '
  'looked at token B" stands for: the slot that predicts A took from the slot that holds B.'
)


class View(NamedTuple):
  """One matrix of weights."""

  name: str  # 'layer 2 of 4 (column), head 3'
  weights: np.ndarray  # float32 [T, T]


class Matrix(NamedTuple):
  """A matrix among those of its layer."""

  name: str
  weights: np.ndarray  # float32 [T, T]
  offsets: np.ndarray | None  # [g, 2 * g - 1], where image slots look relative to themselves; None in texts


class Layer(NamedTuple):
  """The matrices of a layer, drawn beside each other."""

  name: str  # 'Layer 2 of 4: column'
  mask: np.ndarray  # bool [T, T]
  matrices: Sequence[Matrix]


class Tokens(NamedTuple):
  """What the model held to be likely, for the tokens of a sequence, each [T]."""

  probability: np.ndarray
  entropy: np.ndarray  # bits
  rank: np.ndarray


class PictureArticle(NamedTuple):
  """One drawn, or given, picture."""

  title: str
  image: np.ndarray  # uint8 [H, W, 3], what the tokens decode to
  original: np.ndarray | None  # uint8 [H, W, 3], where one was given
  frames: Sequence[tuple[str, np.ndarray]]  # what the tokens decode to as they come
  grid_size: int
  text_length: int
  caption: Sequence[tuple[str, int]]  # tokens of text and the slots that predict them
  keys: Sequence[tuple[str, Sequence[int]]]  # all that text slots hold, and start-of-image, with the slots that do
  words: Sequence[int]  # which of the keys are words
  word_maps: np.ndarray  # [W, g, g] of the first view
  chosen: int  # the image token that is asked first
  chosen_map: np.ndarray  # [g, g], what it looked at in the first view
  tokens: Tokens
  views: Sequence[View]
  layers: Sequence[Layer]


class Text(NamedTuple):
  """One text; without views where the model has no attention."""

  title: str
  pieces: Sequence[str]  # the tokens as text
  given: int  # how many of them were given, not drawn
  tokens: Tokens
  views: Sequence[View]
  layers: Sequence[Layer]


def write(path: Path, title: str, notes: Sequence[str], articles: Sequence[PictureArticle | Text]) -> None:
  """Writes the page, as a whole or not at all. All text is escaped."""
  parts = [f'<script type="application/json" id="palette">{_json(_css_palette())}</script>']
  for article in articles:
    parts += _picture(article) if isinstance(article, PictureArticle) else _text(article)
  write_page(path, title=title, notes=notes, parts=parts, style=STYLE, script=SCRIPT)


def pack(weights: np.ndarray) -> str:
  """The part of weights [T, T] up to the diagonal, row after row, as 255 times their square roots, in base64."""
  roots = np.round(255 * np.sqrt(np.clip(weights, 0.0, 1.0))).astype(np.uint8)
  return base64.b64encode(roots[np.tril_indices(len(roots))].tobytes()).decode('ascii')


def packed_size(length: int) -> int:
  """Bytes that one packed matrix of that many slots takes on the page."""
  return 4 * math.ceil(length * (length + 1) / 2 / 3)


def _picture(p: PictureArticle) -> list[str]:
  return [
    '<article class="picture">',
    _data(p.views, p.tokens, p.chosen, grid=p.grid_size, text=p.text_length, keys=[list(s) for _, s in p.keys]),
    *section(html.escape(p.title), _growth(p)),
    *section('How sure the model was', _picture_certainty(p)),
    *section('What each word drew', _words(p)),
    *section('What each image token looked at', _asked(p)),
    *_layers(p.layers, p.text_length),
    '</article>',
  ]


def _growth(p: PictureArticle) -> list[str]:
  final = inline_picture(Image.fromarray(p.image), 'the whole picture', 'now')
  shown = [titled('as decoded from its tokens', final)]
  if p.original is not None:
    shown.insert(0, titled('as given', inline_picture(Image.fromarray(p.original), 'the given picture', 'final')))
  frames = [f'<figure>{_image(frame, name, "frame")}{paragraph(name, "note")}</figure>' for name, frame in p.frames]
  last = len(frames) - 1
  slider = (
    f'<p class="js-only growth"><input type="range" min="0" max="{last}" value="{last}" aria-label="tokens so far"> '
    f'<output>{html.escape(p.frames[-1][0])}</output></p>'
  )
  note = 'The picture as its tokens come, row by row; what is not there yet is grey.'
  return ['<div class="row">', *shown, '</div>', slider, paragraph(note), '<div class="row">', *frames, '</div>']


def _picture_certainty(p: PictureArticle) -> list[str]:
  spans = [_token(label, p.tokens, slot, _percent(p.tokens.probability[slot]), p.tokens.probability)
           for label, slot in p.caption]  # fmt: skip
  image = [np.asarray(part)[p.text_length :].reshape(p.grid_size, -1) for part in p.tokens]
  probability, entropy, rank = image
  note = (
    'Probabilities are the model\'s own, at temperature 1, of each token given those before it. The caption: orange '
    'where a token was unlikely. The last entry ends the caption. Below, the same of the image tokens.'
  )  # fmt: skip
  return [
    paragraph(note),
    f'<p class="caption">{"".join(spans)}</p>',
    '<div class="row big">',
    _heat('Probability of the token', probability, 1.0, '0%', f'100%; mean {_percent(probability.mean())}'),
    _heat('Entropy', entropy, None, '0', f'{entropy.max():.2f} bits; mean {entropy.mean():.2f}'),
    _heat('Rank of the token', np.log(rank), None, '1', f'{int(rank.max())}; median {np.median(rank):g}'),
    '</div>',
  ]


def _heat(title: str, values: np.ndarray, most: float | None, low: str, high: str) -> str:
  bar = inline_picture(heat.scale_bar(), 'colours from least to most', 'scale')
  shown = inline_picture(heat.heat(values, most), title, 'map')
  return titled(title, f'{shown}<p class="note">{low} {bar} {html.escape(high)}</p>')


def _words(p: PictureArticle) -> list[str]:
  figures = []
  for key, values in zip(p.words, p.word_maps, strict=True):
    maps = inline_picture(heat.heat(values), 'map', 'map') + inline_picture(heat.lit(p.image, values), 'lit', 'lit')
    note = paragraph(f'mean {_percent(values.mean())}, most {_percent(values.max())}', 'note')
    title = f'<h4>{html.escape(p.keys[key][0])}</h4>'
    figures.append(f'<figure class="word" data-key="{key}">{title}{maps}{note}</figure>')
  text = (
    'At the place of each image token: how much the slot that predicts it took from the slots that hold the word. Left '
    'as a map, right as light on the picture; each scaled to its own largest share, which stands below it.'
  )
  return [_select(p.views), paragraph(text), '<div class="row">', *figures, '</div>']


def _asked(p: PictureArticle) -> list[str]:
  row = p.views[0].weights[p.text_length + p.chosen]
  shares = [(label, float(row[list(slots)].sum())) for label, slots in p.keys]
  shares.append(('image tokens', float(p.chosen_map.sum())))
  most = max(share for _, share in shares) or 1.0
  bars = [
    f'<tr><th scope="row">{html.escape(label)}</th><td><span class="bar" style="width:{100 * share / most:.1f}%">'
    f'</span></td><td>{_percent(share)}</td></tr>'
    for label, share in shares
  ]
  side = 100 / p.grid_size
  y, x = divmod(p.chosen, p.grid_size)
  cursor = f'<span class="cursor" style="width:{side}%;height:{side}%;left:{x * side}%;top:{y * side}%"></span>'
  which = f'Image token {p.chosen + 1}: row {y + 1}, column {x + 1}; {_certainty(p.tokens, p.text_length + p.chosen)}.'
  text = (
    'The framed token, and what the slot that predicts it looked at: the text on the left, the image tokens before it '
    'on the right. What follows in raster order was not there yet. '
  )
  pick = f'<div class="pick" tabindex="0">{_image(p.image, "the picture", "final")}{cursor}</div>'
  shown = _image(np.asarray(heat.heat(p.chosen_map)), 'map', 'map')
  light = inline_picture(heat.lit(p.image, p.chosen_map), 'lit', 'lit')
  return [
    _select(p.views),
    f'<p>{text}<span class="js-only">Click another token in the picture, or move with the arrow keys.</span></p>',
    '<div class="asked">',
    f'<p class="which">{which}</p>',
    '<div class="row big">',
    titled('the token asked', pick),
    titled('text it looked at', f'<table class="bars">{"".join(bars)}</table>'),
    titled('image tokens it looked at', shown),
    titled('the same as light', light),
    '</div></div>',
  ]


def _text(t: Text) -> list[str]:
  certain = [_token(piece, t.tokens, i, '', t.tokens.probability) for i, piece in enumerate(t.pieces)]
  # Entropy has no upper bound that means something; it is shown on the scale of the largest.
  scale = 1 - t.tokens.entropy / (t.tokens.entropy.max() or 1.0)
  unsure = [_token(piece, t.tokens, i, '', scale) for i, piece in enumerate(t.pieces)]
  bits = -np.log2(np.maximum(t.tokens.probability, 1e-300))
  facts = (
    f'{len(t.pieces)} tokens, the first {t.given} given; mean {bits.mean():.2f} bits a token, mean entropy '
    f'{t.tokens.entropy.mean():.2f} bits, likeliest token {_percent(np.mean(t.tokens.rank == 1))} of the time.'
  )
  parts = [
    paragraph(facts),
    '<h3>Probability</h3>',
    paragraph('Orange where a token was unlikely given those before it.'),
    f'<p class="tokens">{"".join(certain)}</p>',
    '<h3>Entropy</h3>',
    paragraph(
      f'Orange where the model was unsure before the token came; the deepest is {t.tokens.entropy.max():.2f} bits.'
    ),
    f'<p class="tokens">{"".join(unsure)}</p>',
  ]
  attention = _asked_text(t) if t.views else [paragraph('This kind of model has no attention to show.')]
  chosen = len(t.pieces) - 1
  data = [_data(t.views, t.tokens, chosen)] if t.views else []
  return [
    '<article class="text">', *data, *section(html.escape(t.title), parts),
    *section('What each token looked at', attention), *_layers(t.layers, 0), '</article>',
  ]  # fmt: skip


def _asked_text(t: Text) -> list[str]:
  chosen = len(t.pieces) - 1
  row = t.views[0].weights[chosen]
  most = float(row.max())
  spans = []
  for held, piece in enumerate(('(start)', *t.pieces)):
    blue = f'rgba(47, 129, 214, {0.8 * row[held] / most:.2f})' if held <= chosen else 'none'
    frame = ' chosen' if held == chosen + 1 else ''
    spans.append(f'<span class="token{frame}" style="background:{blue}">{html.escape(piece)}</span>')
  which = f'Token {chosen + 1}: {_certainty(t.tokens, chosen)}; the deepest blue is {_percent(most)}.'
  text = 'The framed token, and in blue what the slot that predicts it looked at.'
  return [
    _select(t.views),
    f'<p>{text}<span class="js-only">Click another token.</span></p>',
    f'<div class="asked"><p class="which">{which}</p><p class="tokens">{"".join(spans)}</p></div>',
  ]


def _layers(layers: Sequence[Layer], border: int) -> list[str]:
  """The matrices of every layer, and the pattern they lie in."""
  blocks = []
  for layer in layers:
    pattern = heat.matrix(layer.mask.astype(np.float32), layer.mask, border)
    figures = [titled('what the pattern allows', inline_picture(pattern, layer.name, 'matrix'))]
    for found in layer.matrices:
      shown = inline_picture(heat.matrix(found.weights, layer.mask, border), found.name, 'matrix')
      if found.offsets is not None:
        shown += inline_picture(heat.offsets(found.offsets), f'{found.name}, by distance', 'offsets')
      figures.append(titled(found.name, shown))
    blocks += [f'<h3>{html.escape(layer.name)}</h3>', '<div class="row">', *figures, '</div>']
  text = (
    'A row for each slot that looks, a column for each slot looked at; the lighter, the more. Grey is out of sight.'
  )
  if border:
    text += (
      ' The lines part text and image. Below, where image slots look relative to themselves, on average: they stand in '
      'the middle of the lowest row, and what is above them on the grid is above. (Slots, not the tokens they hold, '
      'which are one place to the left.)'
    )
  return section('Every layer and head', [paragraph(text), *blocks]) if blocks else []


def _data(views: Sequence[View], tokens: Tokens, chosen: int, **more: Any) -> str:
  content = {
    'views': [pack(view.weights) for view in views],
    'probability': [round(float(p), 5) for p in tokens.probability],
    'entropy': [round(float(e), 3) for e in tokens.entropy],
    'rank': [int(rank) for rank in tokens.rank],
    'chosen': chosen,
    **more,
  }
  return f'<script type="application/json" class="data">{_json(content)}</script>'


def _json(content: Any) -> str:
  """JSON that may stand in a <script>."""
  return json.dumps(content, separators=(',', ':')).replace('<', '\\u003c')


def _css_palette() -> list[str]:
  return [f'rgb({r},{g},{b})' for r, g, b in heat.palette()]


def _select(views: Sequence[View]) -> str:
  options = ''.join(f'<option value="{i}">{html.escape(view.name)}</option>' for i, view in enumerate(views))
  return (
    f'<p class="js-only"><label>Weights of <select class="views" autocomplete="off">{options}</select></label></p>'
    f'<p class="static-only note">Weights of: {html.escape(views[0].name)}.</p>'
  )


def _token(piece: str, tokens: Tokens, slot: int, below: str, sureness: np.ndarray) -> str:
  """A token on orange, the deeper the less sure; what the model held of it when the pointer rests on it."""
  return token(piece, 1 - float(np.clip(sureness[slot], 0.0, 1.0)), _certainty(tokens, slot), below)


def _certainty(tokens: Tokens, slot: int) -> str:
  return (
    f'probability {_percent(tokens.probability[slot])}, entropy {tokens.entropy[slot]:.2f} bits, '
    f'rank {int(tokens.rank[slot])}'
  )


def _image(pixels: np.ndarray, alt: str, style: str) -> str:
  return inline_picture(Image.fromarray(pixels), alt, style)


def _percent(share: float) -> str:
  return f'{100 * float(share):.1f}%'
