"""Square pictures of one size: the paper's random crops (Listings 1 and 2), plain ones, and resizing by area."""

import functools

import numpy as np
from PIL import Image

CROPS = ('center', 'random', 'paper_dvae', 'paper_prior')


def fit(image: np.ndarray, size: int, crop: str = 'center', rng: np.random.Generator | None = None) -> np.ndarray:
  """A square of the picture, resized: area averages on the way down, bicubic on the way up.

  'center' and 'random' take a square of the shorter side, from the middle or from anywhere along the longer side.
  'paper_dvae' (Listing 1) and 'paper_prior' (Listing 2) resize such a square to a random size a little larger than
  asked for, and cut the result out of it; see `_paper_square`.

  Args:
    image: uint8 [H, W, 3].
    size: height and width of the result in pixels. A square that has this size already is not resampled.
    crop: one of CROPS; without `rng` it is 'center' whatever it says.
    rng: source of what is random.

  Returns:
    uint8 [size, size, 3].

  Raises:
    ValueError: an unknown `crop`.
  """
  if crop not in CROPS:
    raise ValueError(f'config.data.crop is {crop!r}; allowed are {", ".join(CROPS)}.')
  if crop.startswith('paper') and rng is not None:
    return _random_cut(_paper_square(image, size, crop, rng), size, rng)
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  if crop == 'random' and rng is not None:
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
  return resize(image[top : top + side, left : left + side], size)


def _paper_square(image: np.ndarray, size: int, crop: str, rng: np.random.Generator) -> np.ndarray:
  """A random square at a random scale, at 256 pixels as in the paper's listings and in proportion at other sizes.

  The dVAE's: any square of the shorter side s, resized to between min(s, 288) and min(s, 384) pixels. The prior's: one
  near the middle, its offset between 3/8 and 5/8 of the room there is, resized to between 256 and min(s, 288). Smaller
  pictures, which the paper's data did not have, are enlarged to `size`.
  """
  height, width = image.shape[:2]
  side, rooms = min(height, width), (height - min(height, width), width - min(height, width))
  if crop == 'paper_dvae':
    top, left = (int(rng.integers(room + 1)) for room in rooms)
    smallest, largest = min(side, 9 * size // 8), min(side, 3 * size // 2)
  else:
    top, left = (int(room * rng.uniform(3 / 8, 5 / 8)) for room in rooms)
    smallest, largest = size, min(side, 9 * size // 8)
  smallest = max(size, smallest)
  scaled = int(rng.integers(smallest, max(smallest, largest) + 1))
  return resize(image[top : top + side, left : left + side], scaled)


def _random_cut(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
  top, left = (int(rng.integers(image.shape[axis] - size + 1)) for axis in (0, 1))
  return image[top : top + size, left : left + size]


def resize(square: np.ndarray, size: int) -> np.ndarray:
  """A square picture, uint8 [S, S, 3], at [size, size, 3]: exact means over areas down, bicubic up."""
  side = square.shape[0]
  if side == size:
    return square
  if side < size:
    return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))
  weights = _area_weights(side, size)
  rows = np.tensordot(weights, square.astype(np.float32), (1, 0))
  means = np.tensordot(weights, rows, (1, 1)).swapaxes(0, 1)
  return np.rint(np.clip(means, 0, 255)).astype(np.uint8)


@functools.lru_cache(maxsize=1024)
def _area_weights(side: int, size: int) -> np.ndarray:
  """[size, side]: the share of each old pixel in each new one, along one axis; Pillow's BOX gives none to parts."""
  edges = np.arange(size + 1) * side / size
  begin, end = np.arange(side), np.arange(side) + 1
  overlap = np.minimum(edges[1:, None], end) - np.maximum(edges[:-1, None], begin)
  return (np.maximum(overlap, 0) * size / side).astype(np.float32)
