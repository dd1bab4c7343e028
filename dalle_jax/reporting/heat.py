"""Numbers as colours: maps over a grid, pictures lit by them, and matrices of attention weights."""

import functools

import numpy as np
from PIL import Image

BLIND = (200, 200, 206)  # entries of a matrix that a pattern leaves out
LINE = (235, 70, 60)  # between text and image
DARK = 0.15  # how much light a picture keeps where nothing looks at it
MAX_MATRIX = 256  # pixels of a matrix's side: longer sequences are drawn in blocks


@functools.cache
def palette() -> np.ndarray:
  """The colours from least to most, uint8 [256, 3]: viridis, which grows lighter all the way."""
  import matplotlib

  return matplotlib.colormaps['viridis'](np.arange(256), bytes=True)[:, :3].copy()


def colours(values: np.ndarray, most: float) -> np.ndarray:
  """Values [...] from 0 to `most` as colours, uint8 [..., 3]."""
  level = np.clip(np.asarray(values, np.float64) / (most or 1.0), 0.0, 1.0)
  return palette()[np.round(255 * level).astype(int)]


def heat(values: np.ndarray, most: float | None = None) -> Image.Image:
  """Values [H, W] as a picture of one pixel each; `most`, the lightest colour, is by default their maximum."""
  return Image.fromarray(colours(values, float(np.max(values)) if most is None else most))


def offsets(values: np.ndarray) -> Image.Image:
  """Mean weights by distance [H, W] as a picture of one pixel each, by square roots; grey where nothing is seen."""
  shown = colours(np.sqrt(values), float(np.sqrt(values).max()))
  return Image.fromarray(np.where(values[..., None] > 0, shown, np.array(BLIND, np.uint8)))


def lit(picture: np.ndarray, values: np.ndarray, most: float | None = None) -> Image.Image:
  """A picture uint8 [H, W, 3], lit by values [g, g] up to `most`: as it is where they reach it, dark where they are 0.

  By default `most` is their maximum.
  """
  rows, columns = (np.arange(size) * len(values) // size for size in picture.shape[:2])
  light = values[rows][:, columns] / ((np.max(values) if most is None else most) or 1.0)
  shown = picture * (DARK + (1 - DARK) * light[..., None])
  return Image.fromarray(np.round(shown).astype(np.uint8))


def matrix(weights: np.ndarray, mask: np.ndarray, border: int = 0) -> Image.Image:
  """Weights of attention [T, T], a row for each slot that looks; square roots, so that small weights are seen.

  A long sequence is drawn in blocks, each with its largest weight.

  Args:
    weights: from 0 to 1.
    mask: bool [T, T], False where the pattern sees nothing: grey.
    border: slots of text; a line is drawn after them in both directions, unless it is 0.
  """
  block = -(-len(weights) // MAX_MATRIX)
  room = (0, -len(weights) % block)
  largest = _block_max(np.pad(np.where(mask, weights, -1.0), (room, room), constant_values=-1.0), block)
  pixels = np.where(largest[..., None] < 0, np.array(BLIND, np.uint8), colours(np.sqrt(np.maximum(largest, 0)), 1.0))
  scale = max(1, 168 // len(pixels))
  pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
  if border:
    at = border // block * scale
    pixels[at], pixels[:, at] = LINE, LINE
  return Image.fromarray(pixels.astype(np.uint8)).quantize(255, dither=Image.Dither.NONE)


def _block_max(x: np.ndarray, block: int) -> np.ndarray:
  size = len(x) // block
  return x.reshape(size, block, size, block).max(axis=(1, 3))


def scale_bar() -> Image.Image:
  """All colours from least to most, beside each other."""
  return Image.fromarray(palette()[None].repeat(12, axis=0))
