"""Painting scenes: anti-aliased at any size, from signed distances to the outlines."""

import functools

import numpy as np

from dalle_jax.data.shapes.scene import BACKGROUNDS, COLORS, Scene

MIN_SIZE = 16
SQUARE_SIDE = 0.9  # of the radius, which gives about the circle's area


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


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
  """The share in [0, 1] of each pixel that a shape covers.

  Args:
    shape: one of SHAPES.
    dx, dy: pixel centres relative to the shape's centre, in pixels; they broadcast.
    radius: in pixels.
  """
  return np.clip(0.5 - _DISTANCES[shape](dx, dy, radius), 0, 1)


@functools.lru_cache(maxsize=8)
def _centers(size: int) -> np.ndarray:
  return np.arange(size, dtype=np.float32) + np.float32(0.5)


def render(scene: Scene, size: int) -> np.ndarray:
  """The picture of a scene.

  Args:
    scene: what to paint; later objects lie over earlier ones.
    size: height and width in pixels, at least MIN_SIZE.

  Returns:
    uint8 [size, size, 3].
  """
  if size < MIN_SIZE:
    raise ValueError(f'image_size is {size}; shapes can be told apart from {MIN_SIZE} pixels on.')
  pixels = _centers(size)
  image = np.empty((size, size, 3), np.float32)
  image[:] = BACKGROUNDS[scene.background]
  for shape in scene.objects:
    dx, dy = pixels[None, :] - np.float32(shape.x * size), pixels[:, None] - np.float32(shape.y * size)
    alpha = coverage(shape.shape, dx, dy, np.float32(shape.radius * size))[..., None]  # [H, W, 1]
    image += alpha * (np.array(COLORS[shape.color], np.float32) - image)
  return (image + 0.5).astype(np.uint8)
