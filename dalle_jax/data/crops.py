"""Square pictures of one size: the paper's random crops (Listings 1 and 2), plain ones, CLIP's; resizing by area."""

import numpy as np
from PIL import Image

CROPS = ('center', 'random', 'paper_dvae', 'paper_prior')
RESAMPLINGS = ('area', 'box')


def fit(
  image: np.ndarray,
  size: int,
  crop: str = 'center',
  rng: np.random.Generator | None = None,
  resampling: str = 'area',
) -> np.ndarray:
  """A square of the picture, resized: by averages on the way down, bicubic on the way up.

  'center' and 'random' take a square of the shorter side, from the middle or from anywhere along the longer side.
  'paper_dvae' (Listing 1, but for its mirroring) and 'paper_prior' (Listing 2) resize such a square to a random size a
  little larger than asked for, and cut the result out of it; see `_paper_square`.

  Args:
    image: uint8 [H, W, 3].
    size: height and width of the result in pixels. A square that has this size already is not resampled.
    crop: one of CROPS; without `rng` it is 'center' whatever it says.
    rng: source of what is random.
    resampling: on the way down, as in `resize`.

  Returns:
    uint8 [size, size, 3].

  Raises:
    ValueError: an unknown `crop` or `resampling`.
  """
  if crop not in CROPS:
    raise ValueError(f'config.data.crop is {crop!r}; allowed are {", ".join(CROPS)}.')
  if crop.startswith('paper') and rng is not None:
    square = _paper_square(image, size, crop, rng, resampling)
    return _part(square, size, *rng.integers(len(square) - size + 1, size=2))
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  if crop == 'random' and rng is not None:
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
  return resize(_part(image, side, top, left), size, resampling)


def _paper_square(
  image: np.ndarray, size: int, crop: str, rng: np.random.Generator, resampling: str = 'area'
) -> np.ndarray:
  """A random square at a random scale, at 256 pixels as in the paper's listings and in proportion at other sizes.

  The dVAE's: any square of the shorter side s, resized to between min(s, 288) and min(s, 384) pixels. The prior's: one
  near the middle, its offset between 3/8 and 5/8 of the room there is, resized to between 256 and min(s, 288). Smaller
  pictures, which the listings could not use, are enlarged to `size`.
  """
  side = min(image.shape[:2])
  rooms = [length - side for length in image.shape[:2]]
  if crop == 'paper_dvae':
    top, left = (int(rng.integers(room + 1)) for room in rooms)
    smallest, largest = round(9 / 8 * size), round(12 / 8 * size)
  else:
    top, left = (int(rng.integers(3 * room // 8, max(3 * room // 8 + 1, 5 * room // 8))) for room in rooms)
    smallest, largest = size, round(9 / 8 * size)
  smallest, largest = (max(size, min(side, bound)) for bound in (smallest, largest))
  return resize(_part(image, side, top, left), int(rng.integers(smallest, largest + 1)), resampling)


def _part(image: np.ndarray, side: int, top: int, left: int) -> np.ndarray:
  return image[top : top + side, left : left + side]


def resize(square: np.ndarray, size: int, resampling: str = 'area') -> np.ndarray:
  """A square picture, uint8 [S, S, 3], at [size, size, 3].

  Args:
    square: the picture.
    size: the new side in pixels; a larger one is reached by bicubic interpolation.
    resampling: on the way down, 'area' takes the exact mean over the area of each new pixel, 'box' (Pillow's) the mean
      of the old pixels whose centres lie in it, which is faster and the same where the sides divide, but for rounding.

  Raises:
    ValueError: an unknown `resampling`.
  """
  if resampling not in RESAMPLINGS:
    raise ValueError(f'config.data.resampling is {resampling!r}; allowed are {", ".join(RESAMPLINGS)}.')
  side = len(square)
  if side == size:
    return square
  if side > size and resampling == 'area':
    return _area_means(square, size)
  method = Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC
  return np.array(Image.fromarray(square).resize((size, size), method))


def _area_means(square: np.ndarray, size: int) -> np.ndarray:
  """Means of uint8 [S, S, 3] over size x size equal areas, S > size, rounded half to even as the listings do.

  In integers, so that they are exact, and the same on every machine.
  """
  rows = _area_sums(square, size)
  sums = _area_sums(rows.swapaxes(0, 1), size).swapaxes(0, 1)
  return np.rint(sums / len(square) ** 2).astype(np.uint8)


def _area_sums(x: np.ndarray, count: int) -> np.ndarray:
  """Integers [L, ...] to `count` times their sums over `count` stretches of L / count items each, [count, ...]."""
  first, part = np.divmod(np.arange(count + 1) * len(x), count)  # stretch j begins part[j] / count into item first[j]
  whole = np.add.reduceat(x, first[:-1], axis=0, dtype=np.int64)
  edges = x[np.minimum(first, len(x) - 1)] * part[:, None, None]  # nothing of the last: its part is 0
  return count * whole - edges[:-1] + edges[1:]


def fit_bicubic(image: np.ndarray, size: int) -> np.ndarray:
  """The middle square of a picture whose shorter side is made `size`, as CLIP's own preparation does it.

  Pillow's bicubic filter, which spreads over as many pixels as become one. A square of this size is not resampled.

  Args:
    image: uint8 [H, W, 3].
    size: height and width of the result in pixels.

  Returns:
    uint8 [size, size, 3].
  """
  height, width = (size * length // min(image.shape[:2]) for length in image.shape[:2])
  if (height, width) != image.shape[:2]:
    image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
  return _part(image, size, round((height - size) / 2), round((width - size) / 2))
