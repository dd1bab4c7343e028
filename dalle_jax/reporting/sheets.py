"""Sheets of pictures for people to look at: reconstructions, samples by prompt, and plain grids; and PNG files."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from dalle_jax.files import write_whole

Colour = tuple[int, int, int]

MIN_CELL = 96  # pixels: smaller pictures are enlarged to at least this
MIN_WIDTH = 384  # pixels: a narrower sheet would break its text at every other word
MARGIN = 20
MAX_COLUMNS = 16  # pictures of one prompt beside each other
GAP = 6  # between pictures, and between a frame and its neighbour
BLOCK_GAP = 18  # between rows that do not belong together
FRAME = 3  # thickness
TEXT_SIZE = 17
LABEL_SIZE = 13
WHITE: Colour = (255, 255, 255)
HAIRLINE: Colour = (214, 214, 218)  # round pictures without a verdict: white ones would melt into the page
INK: Colour = (28, 28, 30)
MUTED: Colour = (105, 105, 112)
# Green and red that differ in lightness too, for those who do not tell the hues apart.
RIGHT: Colour = (0, 158, 96)
WRONG: Colour = (205, 45, 40)


def reconstruction_sheet(
  originals: np.ndarray, reconstructions: np.ndarray, columns: int = 8, cell: int = MIN_CELL
) -> Image.Image:
  """Pairs of pictures, each original above its reconstruction.

  Args:
    originals: uint8 [N, H, W, 3].
    reconstructions: uint8 [N, H, W, 3], in the same order.
    columns: pairs beside each other.
    cell: pixels that the shorter side of a picture shall have at least; see `enlarge`.

  Raises:
    ValueError: the arrays are not such pictures, differ in shape or are empty; or columns is below 1.
  """
  originals, reconstructions = _pictures(originals, 4), _pictures(reconstructions, 4)
  if originals.shape != reconstructions.shape:
    raise ValueError(
      f'Originals {originals.shape} and reconstructions {reconstructions.shape} must have the same shape [N, H, W, 3].'
    )
  labels = [_label(text) for text in ('original', 'reconstruction')]
  left = max(label.width for label in labels)
  blocks = []
  for chosen in _chunks(len(originals), columns):
    pairs = [originals[chosen], reconstructions[chosen]]
    rows = [_labelled(label, _row(row, cell), left) for label, row in zip(labels, pairs, strict=True)]
    blocks.append(_stack(rows, GAP))
  return _sheet(blocks)


def sample_sheet(
  prompts: Sequence[str], images: np.ndarray, right: np.ndarray | None = None, cell: int = MIN_CELL
) -> Image.Image:
  """The images of each prompt, at most MAX_COLUMNS in a row, under its text.

  Args:
    prompts: P texts, wrapped to the sheet's width.
    images: uint8 [P, N, H, W, 3].
    right: bool [P, N], whether a judge found all attributes of the prompt in the image: draws a green or red frame
      round each image, with a legend that counts them.
    cell: pixels that the shorter side of a picture shall have at least; see `enlarge`.

  Raises:
    ValueError: the arrays are not such pictures or verdicts, are empty, or do not fit the prompts.
  """
  images = _pictures(images, 5)
  if len(prompts) != len(images):
    raise ValueError(f'{len(prompts)} prompts were given with images of shape {images.shape}: one row each is needed.')
  if right is not None:
    right = np.asarray(right, bool)
    if right.shape != images.shape[:2]:
      raise ValueError(f'right has shape {right.shape}; it must be {images.shape[:2]}, one verdict for each image.')
  rows = [_rows(images[i], cell, None if right is None else right[i]) for i in range(len(images))]
  width = max(MIN_WIDTH, rows[0].width)
  blocks = [] if right is None else [_legend(right)]
  blocks += [_stack([_text(prompt, width), row], GAP) for prompt, row in zip(prompts, rows, strict=True)]
  return _sheet(blocks)


def contact_sheet(
  images: np.ndarray, columns: int | None = None, title: str | None = None, cell: int = MIN_CELL
) -> Image.Image:
  """A grid of pictures uint8 [N, H, W, 3], as near to a square as can be unless `columns` is given.

  Raises:
    ValueError: the array is not of pictures, is empty, or columns is below 1.
  """
  images = _pictures(images, 4)
  if columns is None:
    columns = math.ceil(math.sqrt(len(images)))
  grid = _stack([_row(images[chosen], cell) for chosen in _chunks(len(images), columns)], GAP)
  return _sheet([grid] if not title else [_text(title, max(MIN_WIDTH, grid.width)), grid])


def enlarge(image: np.ndarray, cell: int = MIN_CELL) -> Image.Image:
  """A picture uint8 [H, W, 3] times the smallest whole factor by which its shorter side has `cell` pixels or more.

  Pixels become squares (nearest neighbour), so that nothing is shown that the model did not draw.
  """
  height, width = image.shape[:2]
  factor = max(1, math.ceil(cell / min(height, width)))
  return Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.NEAREST)


def encode_png(image: Image.Image | np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
  """A picture, or its array uint8 [H, W, 3], as a PNG file; `text` becomes PNG text entries (readable by any viewer).

  Raises:
    ValueError: the array is not a picture, or a text's keyword is not 1 to 79 Latin-1 characters (the format's rule).
  """
  if not isinstance(image, Image.Image):
    image = Image.fromarray(_pictures(image, 3))
  info = PngImagePlugin.PngInfo()
  for keyword, value in (text or {}).items():
    if not 1 <= len(keyword.encode('latin-1', 'replace')) <= 79 or max(keyword) > '\xff':
      raise ValueError(f'PNG text keyword {keyword!r} must be 1 to 79 Latin-1 characters.')
    info.add_text(keyword, value)
  buffer = io.BytesIO()
  image.save(buffer, format='PNG', pnginfo=info)
  return buffer.getvalue()


def save_png(image: Image.Image | np.ndarray, path: Path, text: Mapping[str, str] | None = None) -> None:
  """Writes a PNG file as a whole or not at all; see `encode_png` and `write_whole`."""
  write_whole(path, encode_png(image, text))


def _pictures(images: np.ndarray, ndim: int) -> np.ndarray:
  images = np.asarray(images)
  shape = {3: '[H, W, 3]', 4: '[N, H, W, 3]', 5: '[P, N, H, W, 3]'}[ndim]
  if images.dtype != np.uint8 or images.ndim != ndim or images.shape[-1] != 3 or images.size == 0:
    raise ValueError(f'Pictures must be a uint8 array {shape} that is not empty; given {images.dtype} {images.shape}.')
  return images


def _chunks(count: int, columns: int) -> Iterator[slice]:
  if columns < 1:
    raise ValueError(f'columns is {columns}; it must be at least 1.')
  return (slice(start, start + columns) for start in range(0, count, columns))


def _row(images: np.ndarray, cell: int, right: np.ndarray | None = None) -> Image.Image:
  """Pictures [N, H, W, 3] beside each other, framed by the verdicts [N] where there are any."""
  pictures = [enlarge(image, cell) for image in images]
  if right is None:
    pictures = [ImageOps.expand(picture, 1, HAIRLINE) for picture in pictures]
  else:
    pictures = [_framed(picture, RIGHT if ok else WRONG) for picture, ok in zip(pictures, right, strict=True)]
  width, height = pictures[0].size
  row = Image.new('RGB', (len(pictures) * (width + GAP) - GAP, height), WHITE)
  for i, picture in enumerate(pictures):
    row.paste(picture, (i * (width + GAP), 0))
  return row


def _rows(images: np.ndarray, cell: int, right: np.ndarray | None = None) -> Image.Image:
  """As `_row`, broken into rows of at most MAX_COLUMNS."""
  chunks = _chunks(len(images), MAX_COLUMNS)
  return _stack([_row(images[chosen], cell, None if right is None else right[chosen]) for chosen in chunks], GAP)


def _framed(picture: Image.Image, colour: Colour) -> Image.Image:
  """The picture with a frame round it, and a white line between the two so that colours do not run together."""
  return ImageOps.expand(ImageOps.expand(picture, 1, WHITE), FRAME, colour)


def _legend(right: np.ndarray) -> Image.Image:
  """One line that explains the frames and counts them."""
  count = int(right.sum())
  entries = [(RIGHT, f'all attributes right: {count}'), (WRONG, f'not all right: {right.size - count}')]
  pieces = []
  for colour, words in entries:
    swatch, label = Image.new('RGB', (LABEL_SIZE, LABEL_SIZE), colour), _label(words)
    pieces.append(_labelled(swatch, label, swatch.width))
  width, height = sum(p.width for p in pieces) + BLOCK_GAP, max(p.height for p in pieces)
  legend = Image.new('RGB', (width, height), WHITE)
  legend.paste(pieces[0], (0, 0))
  legend.paste(pieces[1], (pieces[0].width + BLOCK_GAP, 0))
  return legend


def _labelled(label: Image.Image, picture: Image.Image, left: int) -> Image.Image:
  """The picture with a label at its left, centred on its height; pictures begin `left` + GAP pixels from the left."""
  height = max(label.height, picture.height)
  block = Image.new('RGB', (left + GAP + picture.width, height), WHITE)
  block.paste(label, (left - label.width, (height - label.height) // 2))
  block.paste(picture, (left + GAP, (height - picture.height) // 2))
  return block


def _label(text: str) -> Image.Image:
  font = _font(text, LABEL_SIZE)
  return _lines([text], font, MUTED, math.ceil(font.getlength(text)))


def _text(text: str, width: int) -> Image.Image:
  """A paragraph, wrapped to `width` pixels."""
  font = _font(text, TEXT_SIZE)
  return _lines(_wrap(text, font, width), font, INK, width)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
  """Pillow's own font, which has the letters of ASCII only; else matplotlib's, with Latin, Greek and Cyrillic."""
  if text.isascii():
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # always, if a size is given
    return font
  import matplotlib

  return ImageFont.truetype(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf', size)


def _lines(lines: Sequence[str], font: ImageFont.FreeTypeFont, colour: Colour, width: int) -> Image.Image:
  ascent, descent = font.getmetrics()
  height = ascent + descent
  block = Image.new('RGB', (width, height * len(lines)), WHITE)
  draw = ImageDraw.Draw(block)
  for i, line in enumerate(lines):
    draw.text((0, i * height), line, font=font, fill=colour)
  return block


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
  """Lines no wider than `width` pixels, broken between words, and within a word that is wider than a line."""
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.lstrip()
    if font.getlength(longer) <= width:
      lines[-1] = longer
      continue
    lines += _pieces(word, font, width)
  return [line for line in lines if line] or ['']


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
  pieces = ['']
  for character in word:
    if pieces[-1] and font.getlength(pieces[-1] + character) > width:
      pieces.append('')
    pieces[-1] += character
  return pieces


def _stack(blocks: Sequence[Image.Image], gap: int) -> Image.Image:
  """Blocks under each other, at the left."""
  height = sum(block.height for block in blocks) + gap * (len(blocks) - 1)
  stacked = Image.new('RGB', (max(block.width for block in blocks), height), WHITE)
  top = 0
  for block in blocks:
    stacked.paste(block, (0, top))
    top += block.height + gap
  return stacked


def _sheet(blocks: Sequence[Image.Image]) -> Image.Image:
  """Blocks under each other on a white page with a margin."""
  body = _stack(blocks, BLOCK_GAP)
  page = Image.new('RGB', (body.width + 2 * MARGIN, body.height + 2 * MARGIN), WHITE)
  page.paste(body, (MARGIN, MARGIN))
  return page


def lay_out(prompts: list[str], images: np.ndarray, right: np.ndarray | None = None) -> Image.Image:
  """A sheet of images [P, N, H, W, 3] under their prompts, or, without prompts, in a grid."""
  if prompts:
    return sample_sheet(prompts, images, right)
  return contact_sheet(images.reshape(-1, *images.shape[2:]))
