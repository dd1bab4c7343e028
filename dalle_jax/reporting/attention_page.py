"""The page of a transformer's attention weights: one HTML file that works offline."""

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
  'Slot t predicts token t. Its input is token t - 1, and it attends to itself and to earlier slots. So "token A '
  'attends to token B" means: the slot that predicts A attends to the slot whose input is B.'
)


class View(NamedTuple):
  """One attention matrix that the reader can choose."""

  name: str  # 'layer 2 of 4 (column), head 3'
  weights: np.ndarray  # float32 [T, T]


class Matrix(NamedTuple):
  """One attention matrix of a layer."""

  name: str
  weights: np.ndarray  # float32 [T, T]
  offsets: np.ndarray | None  # [g, 2 * g - 1], mean weight by relative position on the image grid; None for texts


class Layer(NamedTuple):
  """The matrices of a layer, which the page shows side by side."""

  name: str  # 'Layer 2 of 4: column'
  mask: np.ndarray  # bool [T, T]
  matrices: Sequence[Matrix]


class Tokens(NamedTuple):
  """The certainty of the model at each token of a sequence, each [T]."""

  probability: np.ndarray  # of the actual token
  entropy: np.ndarray  # bits, of the predicted distribution
  rank: np.ndarray  # of the actual token; 1 is the likeliest


class PictureArticle(NamedTuple):
  """One picture, generated or from a file."""

  title: str
  image: np.ndarray  # uint8 [H, W, 3], decoded from the image tokens
  original: np.ndarray | None  # uint8 [H, W, 3], the picture from the file; None for a generated picture
  frames: Sequence[tuple[str, np.ndarray]]  # decoded from growing numbers of tokens
  grid_size: int
  text_length: int
  caption: Sequence[tuple[str, int]]  # text tokens, and the slots that predict them
  keys: Sequence[tuple[str, Sequence[int]]]  # (label, slots) of each input before the first image token
  words: Sequence[int]  # indices of the keys that are words
  word_maps: np.ndarray  # [W, g, g], attention to each word in the first view
  chosen: int  # the image token that is selected first
  chosen_map: np.ndarray  # [g, g], attention of this token in the first view
  tokens: Tokens
  views: Sequence[View]
  layers: Sequence[Layer]


class Text(NamedTuple):
  """One text. It has no views and layers if the model has no attention."""

  title: str
  pieces: Sequence[str]  # the tokens as text
  given: int  # length of the prompt, in tokens
  tokens: Tokens
  views: Sequence[View]
  layers: Sequence[Layer]


def write(path: Path, title: str, notes: Sequence[str], articles: Sequence[PictureArticle | Text]) -> None:
  """Write the page atomically. All text is escaped."""
  parts = [f'<script type="application/json" id="palette">{_json(_css_palette())}</script>']
  for article in articles:
    parts += _picture(article) if isinstance(article, PictureArticle) else _text(article)
  write_page(path, title=title, notes=notes, parts=parts, style=STYLE, script=SCRIPT)


def pack(weights: np.ndarray) -> str:
  """Encode the lower triangle of weights [T, T], row by row: bytes of 255 times the square root, in base64."""
  roots = np.round(255 * np.sqrt(np.clip(weights, 0.0, 1.0))).astype(np.uint8)
  return base64.b64encode(roots[np.tril_indices(len(roots))].tobytes()).decode('ascii')


def packed_size(length: int) -> int:
  """Bytes on the page for one matrix of `length` slots, as `pack` encodes it."""
  return 4 * math.ceil(length * (length + 1) / 2 / 3)


def _picture(p: PictureArticle) -> list[str]:
  return [
    '<article class="picture">',
    _data(p.views, p.tokens, p.chosen, grid=p.grid_size, text=p.text_length, keys=[list(s) for _, s in p.keys]),
    *section(html.escape(p.title), _growth(p)),
    *section('Certainty of the model', _picture_certainty(p)),
    *section('Image tokens that attend to each word', _words(p)),
    *section('What each image token attends to', _attention_of_chosen(p)),
    *_layers(p.layers, p.text_length),
    '</article>',
  ]


def _growth(p: PictureArticle) -> list[str]:
  final = inline_picture(Image.fromarray(p.image), 'the complete picture', 'now')
  figures = [titled('decoded from its tokens', final)]
  if p.original is not None:
    figures.insert(0, titled('original', inline_picture(Image.fromarray(p.original), 'the original picture', 'final')))
  frames = [f'<figure>{_image(frame, name, "frame")}{paragraph(name, "note")}</figure>' for name, frame in p.frames]
  last = len(frames) - 1
  slider = (
    f'<p class="js-only growth"><input type="range" min="0" max="{last}" value="{last}" aria-label="number of tokens"> '
    f'<output>{html.escape(p.frames[-1][0])}</output></p>'
  )
  note = 'The picture while its tokens are generated, row by row. Missing tokens are grey.'
  return ['<div class="row">', *figures, '</div>', slider, paragraph(note), '<div class="row">', *frames, '</div>']


def _picture_certainty(p: PictureArticle) -> list[str]:
  spans = [_token(label, p.tokens, slot, _percent(p.tokens.probability[slot]), p.tokens.probability)
           for label, slot in p.caption]  # fmt: skip
  probability, entropy, rank = (np.asarray(values)[p.text_length :].reshape(p.grid_size, -1) for values in p.tokens)
  note = (
    'The probability of each token given all earlier tokens, at temperature 1. Unlikely caption tokens are orange; the '
    'last entry is the end of the caption. Below the caption are maps for the image tokens.'
  )
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
  bar = inline_picture(heat.scale_bar(), 'colour scale, from low to high', 'scale')
  heat_map = inline_picture(heat.heat(values, most), title, 'map')
  return titled(title, f'{heat_map}<p class="note">{low} {bar} {html.escape(high)}</p>')


def _words(p: PictureArticle) -> list[str]:
  figures = []
  for key, values in zip(p.words, p.word_maps, strict=True):
    maps = inline_picture(heat.heat(values), 'map', 'map') + inline_picture(heat.lit(p.image, values), 'lit', 'lit')
    note = paragraph(f'mean {_percent(values.mean())}, maximum {_percent(values.max())}', 'note')
    title = f'<h4>{html.escape(p.keys[key][0])}</h4>'
    figures.append(f'<figure class="word" data-key="{key}">{title}{maps}{note}</figure>')
  text = (
    'The maps show, for each image token, how much the slot that predicts it attends to the slots whose input is the '
    'word. Left: the weights. Right: the picture, brighter where the weight is larger. Each map has its own scale, up '
    'to the maximum below it.'
  )
  return [_select(p.views), paragraph(text), '<div class="row">', *figures, '</div>']


def _attention_of_chosen(p: PictureArticle) -> list[str]:
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
    'Attention of the slot that predicts the framed token: to the text on the left, to earlier image tokens on the '
    'right. Later tokens in raster order did not exist yet. '
  )
  pick = f'<div class="pick" tabindex="0">{_image(p.image, "the picture", "final")}{cursor}</div>'
  heat_map = _image(np.asarray(heat.heat(p.chosen_map)), 'map', 'map')
  light = inline_picture(heat.lit(p.image, p.chosen_map), 'lit', 'lit')
  return [
    _select(p.views),
    f'<p>{text}<span class="js-only">Click another token in the picture, or move with the arrow keys.</span></p>',
    '<div class="asked">',
    f'<p class="which">{which}</p>',
    '<div class="row big">',
    titled('selected token', pick),
    titled('attention to text', f'<table class="bars">{"".join(bars)}</table>'),
    titled('attention to image tokens', heat_map),
    titled('the same as brightness', light),
    '</div></div>',
  ]


def _text(t: Text) -> list[str]:
  certain = [_token(piece, t.tokens, i, '', t.tokens.probability) for i, piece in enumerate(t.pieces)]
  # The upper bound of entropy is rarely reached, so the scale ends at the largest value.
  scale = 1 - t.tokens.entropy / (t.tokens.entropy.max() or 1.0)
  unsure = [_token(piece, t.tokens, i, '', scale) for i, piece in enumerate(t.pieces)]
  bits = -np.log2(np.maximum(t.tokens.probability, 1e-300))
  facts = (
    f'{len(t.pieces)} tokens; the first {t.given} are the prompt. Mean {bits.mean():.2f} bits per token, mean '
    f'entropy {t.tokens.entropy.mean():.2f} bits. {_percent(np.mean(t.tokens.rank == 1))} of the tokens have '
    'rank 1, the likeliest.'
  )
  parts = [
    paragraph(facts),
    '<h3>Probability</h3>',
    paragraph('Tokens that are unlikely given the earlier tokens are orange.'),
    f'<p class="tokens">{"".join(certain)}</p>',
    '<h3>Entropy</h3>',
    paragraph(
      f'Tokens that the model was unsure about are orange. The strongest orange is {t.tokens.entropy.max():.2f} bits.'
    ),
    f'<p class="tokens">{"".join(unsure)}</p>',
  ]
  attention = _attention_of_chosen_text(t) if t.views else [paragraph('This kind of model has no attention to show.')]
  chosen = len(t.pieces) - 1
  data = [_data(t.views, t.tokens, chosen)] if t.views else []
  return [
    '<article class="text">', *data, *section(html.escape(t.title), parts),
    *section('What each token attends to', attention), *_layers(t.layers, 0), '</article>',
  ]  # fmt: skip


def _attention_of_chosen_text(t: Text) -> list[str]:
  chosen = len(t.pieces) - 1
  row = t.views[0].weights[chosen]
  most = float(row.max())
  spans = []
  for slot, piece in enumerate(('(start)', *t.pieces)):  # `piece` is the input of this slot
    blue = f'rgba(47, 129, 214, {0.8 * row[slot] / most:.2f})' if slot <= chosen else 'none'
    frame = ' chosen' if slot == chosen + 1 else ''
    spans.append(f'<span class="token{frame}" style="background:{blue}">{html.escape(piece)}</span>')
  which = f'Token {chosen + 1}: {_certainty(t.tokens, chosen)}; the strongest blue is {_percent(most)}.'
  text = 'Attention of the slot that predicts the framed token, in blue. '
  return [
    _select(t.views),
    f'<p>{text}<span class="js-only">Click another token.</span></p>',
    f'<div class="asked"><p class="which">{which}</p><p class="tokens">{"".join(spans)}</p></div>',
  ]


def _layers(layers: Sequence[Layer], border: int) -> list[str]:
  """The attention pattern and the matrices of each layer.

  Args:
    layers: the layers to show.
    border: slots of text before the image; 0 for texts.
  """
  blocks = []
  for layer in layers:
    pattern = heat.matrix(layer.mask.astype(np.float32), layer.mask, border)
    figures = [titled('attention pattern', inline_picture(pattern, layer.name, 'matrix'))]
    for matrix in layer.matrices:
      pictures = inline_picture(heat.matrix(matrix.weights, layer.mask, border), matrix.name, 'matrix')
      if matrix.offsets is not None:
        pictures += inline_picture(heat.offsets(matrix.offsets), f'{matrix.name}, by relative position', 'offsets')
      figures.append(titled(matrix.name, pictures))
    blocks += [f'<h3>{html.escape(layer.name)}</h3>', '<div class="row">', *figures, '</div>']
  text = 'Rows are queries, columns are keys. Lighter means more attention; grey is masked.'
  if border:
    text += (
      ' The lines separate text and image. Below each matrix: the mean attention of image slots by relative position '
      'on the grid. The query is in the middle of the bottom row. (Positions are slot positions. The input of a slot '
      'is the token one place to the left.)'
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
  """JSON that is safe inside a <script> element."""
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
  """A token on an orange background that is stronger if the model was less sure, with its certainty as a tooltip."""
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
