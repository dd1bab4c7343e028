"""Sheets of pictures (reconstructions, samples by prompt, and plain grids), and PNG files."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from dalle_jax.files import write_whole

Colour = tuple[int, int, int]

# Sizes are in pixels.
MIN_CELL = 96  # smaller pictures are enlarged until their shorter side is at least this
MIN_WIDTH = 384  # minimum width of text, which would otherwise wrap after every other word on narrow sheets
MARGIN = 20
MAX_COLUMNS = 16  # pictures of one prompt in a row
GAP = 6  # between neighbouring pictures or frames
BLOCK_GAP = 18  # between the rows of different pairs or prompts
FRAME = 3  # thickness
TEXT_SIZE = 17
LABEL_SIZE = 13
WHITE: Colour = (255, 255, 255)
HAIRLINE: Colour = (214, 214, 218)  # outline of pictures without a verdict, so that white pictures stand out
INK: Colour = (28, 28, 30)
MUTED: Colour = (105, 105, 112)
# This green and red also differ in lightness, for readers with red-green colour blindness.
RIGHT: Colour = (0, 158, 96)
WRONG: Colour = (205, 45, 40)


def reconstruction_sheet(
  originals: np.ndarray, reconstructions: np.ndarray, columns: int = 8, cell: int = MIN_CELL
) -> Image.Image:
  """Draw each original above its reconstruction.

  Args:
    originals: uint8 [N, H, W, 3].
    reconstructions: uint8 [N, H, W, 3], in the same order.
    columns: pairs in a row.
    cell: minimum pixels of the shorter side of a picture; see `enlarge`.

  Raises:
    ValueError: an array has a wrong type or shape or is empty; the shapes differ; or `columns` is below 1.
  """
  originals, reconstructions = _pictures(originals, 4), _pictures(reconstructions, 4)
  if originals.shape != reconstructions.shape:
    raise ValueError(
      f'Originals {originals.shape} and reconstructions {reconstructions.shape} must have the same shape [N, H, W, 3].'
    )
  labels = [_label(text) for text in ('original', 'reconstruction')]
  left = max(label.width for label in labels)
  blocks = []
  for chunk in _chunks(len(originals), columns):
    pairs = [originals[chunk], reconstructions[chunk]]
    rows = [_labelled(label, _row(row, cell), left) for label, row in zip(labels, pairs, strict=True)]
    blocks.append(_stack(rows, GAP))
  return _sheet(blocks)


def sample_sheet(
  prompts: Sequence[str], images: np.ndarray, right: np.ndarray | None = None, cell: int = MIN_CELL
) -> Image.Image:
  """Draw the images of each prompt under the prompt, at most MAX_COLUMNS in a row.

  Args:
    prompts: P prompts, which are wrapped to the width of the sheet.
    images: uint8 [P, N, H, W, 3].
    right: bool [P, N], whether a judge found all attributes of the prompt in the image. Images then get green or red
      frames, and the sheet gets a legend with counts. None if there is no judge.
    cell: minimum pixels of the shorter side of a picture; see `enlarge`.

  Raises:
    ValueError: an array has a wrong type or shape, is empty, or does not fit the prompts.
  """
  images = _pictures(images, 5)
  if len(prompts) != len(images):
    raise ValueError(f'{len(prompts)} prompts do not fit images of shape {images.shape}; each prompt needs one row.')
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
  """Draw a grid of pictures.

  Args:
    images: uint8 [N, H, W, 3].
    columns: pictures in a row; None for a grid that is nearly square.
    title: a line of text above the grid; None for no title.
    cell: minimum pixels of the shorter side of a picture; see `enlarge`.

  Raises:
    ValueError: the array has a wrong type or shape or is empty; or `columns` is below 1.
  """
  images = _pictures(images, 4)
  if columns is None:
    columns = math.ceil(math.sqrt(len(images)))
  grid = _stack([_row(images[chunk], cell) for chunk in _chunks(len(images), columns)], GAP)
  return _sheet([grid] if not title else [_text(title, max(MIN_WIDTH, grid.width)), grid])


def enlarge(image: np.ndarray, cell: int = MIN_CELL) -> Image.Image:
  """Enlarge a picture uint8 [H, W, 3] by the smallest integer factor so that both sides have at least `cell` pixels.

  Pixels become squares (nearest neighbour), because interpolation would show details that the model did not generate.
  """
  height, width = image.shape[:2]
  factor = max(1, math.ceil(cell / min(height, width)))
  return Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.NEAREST)


def encode_png(image: Image.Image | np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
  """Encode a picture as a PNG file.

  Args:
    image: the picture, or its pixels uint8 [H, W, 3].
    text: PNG text entries, keyword -> value.

  Raises:
    ValueError: the array has a wrong type or shape, or a keyword is not 1 to 79 Latin-1 characters (a rule of PNG).
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
  """Write a PNG file atomically; see `encode_png` and `files.write_whole`."""
  write_whole(path, encode_png(image, text))


def _pictures(images: np.ndarray, ndim: int) -> np.ndarray:
  images = np.asarray(images)
  shape = {3: '[H, W, 3]', 4: '[N, H, W, 3]', 5: '[P, N, H, W, 3]'}[ndim]
  if images.dtype != np.uint8 or images.ndim != ndim or images.shape[-1] != 3 or images.size == 0:
    raise ValueError(f'The pictures are {images.dtype} {images.shape}; they must be uint8 {shape} and not empty.')
  return images


def _chunks(count: int, columns: int) -> Iterator[slice]:
  if columns < 1:
    raise ValueError(f'columns is {columns}; it must be at least 1.')
  return (slice(start, start + columns) for start in range(0, count, columns))


def _row(images: np.ndarray, cell: int, right: np.ndarray | None = None) -> Image.Image:
  """Draw pictures [N, H, W, 3] in a row, with frames for the verdicts [N] if there are any."""
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
  """Draw pictures like `_row`, but in rows of at most MAX_COLUMNS."""
  chunks = _chunks(len(images), MAX_COLUMNS)
  return _stack([_row(images[chunk], cell, None if right is None else right[chunk]) for chunk in chunks], GAP)


def _framed(picture: Image.Image, colour: Colour) -> Image.Image:
  """Add a frame to a picture, with a white line between them that separates the colours."""
  return ImageOps.expand(ImageOps.expand(picture, 1, WHITE), FRAME, colour)


def _legend(right: np.ndarray) -> Image.Image:
  """One line that explains the frames and counts them."""
  count = int(right.sum())
  texts = [(RIGHT, f'all attributes right: {count}'), (WRONG, f'not all right: {right.size - count}')]
  entries = []
  for colour, text in texts:
    swatch, label = Image.new('RGB', (LABEL_SIZE, LABEL_SIZE), colour), _label(text)
    entries.append(_labelled(swatch, label, swatch.width))
  width, height = sum(entry.width for entry in entries) + BLOCK_GAP, max(entry.height for entry in entries)
  legend = Image.new('RGB', (width, height), WHITE)
  legend.paste(entries[0], (0, 0))
  legend.paste(entries[1], (entries[0].width + BLOCK_GAP, 0))
  return legend


def _labelled(label: Image.Image, picture: Image.Image, left: int) -> Image.Image:
  """Draw a label to the left of a picture, vertically centred. The picture starts `left` + GAP pixels from the left."""
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
  """Pillow's default font for ASCII; otherwise Matplotlib's font, which has Latin, Greek and Cyrillic letters."""
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
  """Wrap text to `width` pixels. Lines break between words, and within a word only if it is wider than a line."""
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
  """Stack blocks vertically, aligned at the left."""
  height = sum(block.height for block in blocks) + gap * (len(blocks) - 1)
  stacked = Image.new('RGB', (max(block.width for block in blocks), height), WHITE)
  top = 0
  for block in blocks:
    stacked.paste(block, (0, top))
    top += block.height + gap
  return stacked


def _sheet(blocks: Sequence[Image.Image]) -> Image.Image:
  """Stack blocks vertically on a white page with a margin."""
  body = _stack(blocks, BLOCK_GAP)
  page = Image.new('RGB', (body.width + 2 * MARGIN, body.height + 2 * MARGIN), WHITE)
  page.paste(body, (MARGIN, MARGIN))
  return page


def lay_out(prompts: list[str], images: np.ndarray, right: np.ndarray | None = None) -> Image.Image:
  """Draw images uint8 [P, N, H, W, 3] under their prompts, or in a grid if there are no prompts."""
  if prompts:
    return sample_sheet(prompts, images, right)
  return contact_sheet(images.reshape(-1, *images.shape[2:]))
