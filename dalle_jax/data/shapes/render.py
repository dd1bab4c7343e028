"""Render scenes as anti-aliased images of any size, from the signed distances of pixels to the shapes' outlines."""

import functools

import numpy as np

from dalle_jax.data.shapes.scene import BACKGROUNDS, COLORS, Scene

MIN_SIZE = 16
SQUARE_SIDE = 0.9  # half the side of a square, in units of the radius; gives about the area of the circle


# These functions return the signed distance to a shape's outline in pixels, negative inside. Outside, near a corner,
# they underestimate the distance.
def _circle(dx, dy, radius):
  return np.sqrt(dx * dx + dy * dy) - radius


def _square(dx, dy, radius):
  return np.maximum(np.abs(dx), np.abs(dy)) - SQUARE_SIDE * radius


def _diamond(dx, dy, radius):
  return (np.abs(dx) + np.abs(dy) - radius) * np.float32(0.5**0.5)


def _triangle(dx, dy, radius):
  sides = (2 * np.abs(dx) - dy - radius) * np.float32(0.2**0.5)
  return np.maximum(dy - radius, sides)


_DISTANCES = {'circle': _circle, 'square': _square, 'triangle': _triangle, 'diamond': _diamond}


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray | np.floating | float) -> np.ndarray:
  """Returns the signed distance in pixels to the outline of a shape; the arguments are those of `coverage`."""
  return _DISTANCES[shape](dx, dy, radius)


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray | np.floating | float) -> np.ndarray:
  """Returns the share of each pixel that a shape covers, in [0, 1].

  Args:
    shape: one of SHAPES.
    dx: horizontal offset of each pixel's centre from the shape's centre, in pixels. Broadcasts with `dy`.
    dy: vertical offset, in pixels, positive downwards.
    radius: the shape's radius in pixels (see `scene.SIZES`).
  """
  return np.clip(0.5 - signed_distance(shape, dx, dy, radius), 0, 1)


@functools.lru_cache(maxsize=8)
def _centers(size: int) -> np.ndarray:
  return np.arange(size, dtype=np.float32) + np.float32(0.5)


def render(scene: Scene, size: int) -> np.ndarray:
  """Renders a scene.

  Args:
    scene: the scene. Later objects cover earlier ones.
    size: height and width in pixels, at least MIN_SIZE.

  Returns:
    uint8 [size, size, 3].

  Raises:
    ValueError: `size` is below MIN_SIZE.
  """
  if size < MIN_SIZE:
    raise ValueError(f'image_size is {size}; it must be at least {MIN_SIZE}, so that shapes can be told apart.')
  pixels = _centers(size)
  image = np.empty((size, size, 3), np.float32)
  image[:] = BACKGROUNDS[scene.background]
  for shape in scene.objects:
    dx, dy = pixels[None, :] - np.float32(shape.x * size), pixels[:, None] - np.float32(shape.y * size)
    alpha = coverage(shape.shape, dx, dy, np.float32(shape.radius * size))[..., None]  # [H, W, 1]
    image += alpha * (np.array(COLORS[shape.color], np.float32) - image)
  return (image + 0.5).astype(np.uint8)
