"""Numbers as colours: maps over a grid, pictures with adjusted brightness, and attention matrices."""

import functools

import numpy as np
from PIL import Image

BLIND = (200, 200, 206)  # masked entries of a matrix
LINE = (235, 70, 60)  # between text and image
DARK = 0.15  # brightness of a picture where the value is 0
MAX_MATRIX = 256  # pixels: maximum side of a drawn matrix; for longer sequences, each pixel shows a block of entries


@functools.cache
def palette() -> np.ndarray:
  """The colours from low to high values, uint8 [256, 3]: viridis, whose lightness increases monotonically."""
  import matplotlib

  return matplotlib.colormaps['viridis'](np.arange(256), bytes=True)[:, :3].copy()


def colours(values: np.ndarray, most: float) -> np.ndarray:
  """Map values [...] from 0 to `most` to colours uint8 [..., 3]."""
  level = np.clip(np.asarray(values, np.float64) / (most or 1.0), 0.0, 1.0)
  return palette()[np.round(255 * level).astype(int)]


def heat(values: np.ndarray, most: float | None = None) -> Image.Image:
  """Draw values [H, W] as a picture with one pixel each. `most`, by default the maximum, gets the lightest colour."""
  return Image.fromarray(colours(values, float(np.max(values)) if most is None else most))


def offsets(values: np.ndarray) -> Image.Image:
  """Draw mean weights by relative position [H, W] as a picture with one pixel each.

  Colours show square roots, so that small weights are visible. Zeros are grey.
  """
  pixels = colours(np.sqrt(values), float(np.sqrt(values).max()))
  return Image.fromarray(np.where(values[..., None] > 0, pixels, np.array(BLIND, np.uint8)))


def lit(picture: np.ndarray, values: np.ndarray, most: float | None = None) -> Image.Image:
  """Dim a picture uint8 [H, W, 3] by values [g, g]: unchanged at the value `most`, dark at 0.

  By default `most` is the maximum of the values.
  """
  rows, columns = (np.arange(size) * len(values) // size for size in picture.shape[:2])
  light = values[rows][:, columns] / ((np.max(values) if most is None else most) or 1.0)
  pixels = picture * (DARK + (1 - DARK) * light[..., None])
  return Image.fromarray(np.round(pixels).astype(np.uint8))


def matrix(weights: np.ndarray, mask: np.ndarray, border: int = 0) -> Image.Image:
  """Draw an attention matrix [T, T] with a row for each query.

  Colours show square roots, so that small weights are visible. For a long sequence, each pixel shows the largest weight
  of a block.

  Args:
    weights: attention weights from 0 to 1.
    mask: bool [T, T]. Entries that are False are grey.
    border: slots of text; lines after them separate text and image. 0 for no lines.
  """
  block = -(-len(weights) // MAX_MATRIX)
  padding = (0, -len(weights) % block)
  largest = _block_max(np.pad(np.where(mask, weights, -1.0), (padding, padding), constant_values=-1.0), block)
  pixels = np.where(largest[..., None] < 0, np.array(BLIND, np.uint8), colours(np.sqrt(np.maximum(largest, 0)), 1.0))
  scale = max(1, 168 // len(pixels))
  pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
  if border:
    edge = border // block * scale
    pixels[edge], pixels[:, edge] = LINE, LINE
  return Image.fromarray(pixels.astype(np.uint8)).quantize(255, dither=Image.Dither.NONE)


def _block_max(x: np.ndarray, block: int) -> np.ndarray:
  size = len(x) // block
  return x.reshape(size, block, size, block).max(axis=(1, 3))


def scale_bar() -> Image.Image:
  """A bar of all colours, from low values on the left to high values on the right."""
  return Image.fromarray(palette()[None].repeat(12, axis=0))
