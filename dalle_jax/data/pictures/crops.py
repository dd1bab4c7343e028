"""Crop and resize images to squares: plain crops, the DALL-E paper's random crops (Listings 1 and 2), CLIP's crop."""

import functools

import numpy as np
from PIL import Image

CROPS = ('center', 'random', 'paper_dvae', 'paper_prior')
RESAMPLINGS = ('area', 'box', 'draft')


def fit(
  image: np.ndarray,
  size: int,
  crop: str = 'center',
  rng: np.random.Generator | None = None,
  resampling: str = 'area',
) -> np.ndarray:
  """Crops a square from an image and resizes it.

  'center' and 'random' crop a square whose side is the image's shorter side. 'center' takes the middle of the longer
  side, 'random' any place along it. 'paper_dvae' (Listing 1 without its mirroring) and 'paper_prior' (Listing 2) resize
  such a square to a random size slightly above `size`, then crop [size, size] from it; see `_paper_square`.

  Args:
    image: uint8 [H, W, 3].
    size: height and width of the result in pixels. A square of this size is not resampled.
    crop: one of CROPS. Ignored without `rng`: the crop is then 'center'.
    rng: source of the random choices.
    resampling: how to reduce the square, see `resize`.

  Returns:
    uint8 [size, size, 3].

  Raises:
    ValueError: `crop` or `resampling` is unknown.
  """
  if crop not in CROPS:
    raise ValueError(f'config.data.crop is {crop!r}; allowed are {", ".join(CROPS)}.')
  if crop.startswith('paper') and rng is not None:
    square = _paper_square(image, size, crop, rng, resampling)
    return _square(square, size, *rng.integers(len(square) - size + 1, size=2))
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  if crop == 'random' and rng is not None:
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
  return resize(_square(image, side, top, left), size, resampling)


def _paper_square(
  image: np.ndarray, size: int, crop: str, rng: np.random.Generator, resampling: str = 'area'
) -> np.ndarray:
  """Crops a square at a random place and resizes it to a random size, following the paper's listings.

  The listings use size 256; other sizes are scaled in proportion. With s the shorter side of the image, at size 256:
    * 'paper_dvae' (Listing 1) takes any square of side s and resizes it to between min(s, 288) and min(s, 384) pixels.
    * 'paper_prior' (Listing 2) takes a square of side s near the middle. Its offset is between 3/8 and 5/8 of the
      largest possible offset. It is resized to between 256 and min(s, 288) pixels.

  The listings cannot handle images with s < 256. Here they are enlarged to `size`.

  Returns:
    uint8 [R, R, 3], where R is the random size, at least `size`.
  """
  side = min(image.shape[:2])
  max_offsets = [length - side for length in image.shape[:2]]
  if crop == 'paper_dvae':
    top, left = (int(rng.integers(offset + 1)) for offset in max_offsets)
    smallest, largest = round(9 / 8 * size), round(12 / 8 * size)
  else:
    top, left = (
      int(rng.integers(3 * offset // 8, max(3 * offset // 8 + 1, 5 * offset // 8))) for offset in max_offsets
    )
    smallest, largest = size, round(9 / 8 * size)
  smallest, largest = (max(size, min(side, bound)) for bound in (smallest, largest))
  return resize(_square(image, side, top, left), int(rng.integers(smallest, largest + 1)), resampling)


def _square(image: np.ndarray, side: int, top: int, left: int) -> np.ndarray:
  return image[top : top + side, left : left + side]


def smallest_side(size: int, crop: str, resampling: str) -> int | None:
  """The shorter side that a decoded picture needs for `fit`: a JPEG may be decoded at 1/2, 1/4 or 1/8 down to it.

  Only 'draft' allows that. The decoder then skips the finest frequencies of each block, which is about twice as fast
  for a picture of four times the size, and not quite a mean.

  Returns:
    Pixels; None for whole pictures.
  """
  if resampling != 'draft':
    return None
  return round({'paper_dvae': 12 / 8, 'paper_prior': 9 / 8}.get(crop, 1) * size)


def resize(square: np.ndarray, size: int, resampling: str = 'area') -> np.ndarray:
  """Resizes a square image. Enlarging is bicubic; reducing takes means.

  Args:
    square: uint8 [S, S, 3].
    size: the new side in pixels.
    resampling: how to reduce. 'area' computes the exact mean over the area of each new pixel. 'box' (Pillow's box
      filter) averages the old pixels whose centres lie in the new pixel. If `size` divides S, both agree up to
      rounding. 'draft' is 'area' here: it differs in how the picture was decoded, see `smallest_side`.

  Returns:
    uint8 [size, size, 3].

  Raises:
    ValueError: `resampling` is unknown.
  """
  if resampling not in RESAMPLINGS:
    raise ValueError(f'config.data.resampling is {resampling!r}; allowed are {", ".join(RESAMPLINGS)}.')
  side = len(square)
  if side == size:
    return square
  if side > size and resampling != 'box':
    return _area_means(square, size, size)
  method = Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC
  return np.array(Image.fromarray(square).resize((size, size), method))


def reduce_shorter_side(image: np.ndarray, size: int) -> np.ndarray:
  """Reduces an image to a shorter side of `size` pixels by exact means of areas; the longer side is rounded.

  Args:
    image: uint8 [H, W, 3].
    size: the shorter side afterwards; an image whose shorter side is not larger is returned as it is.

  Returns:
    uint8 [H, W, 3] with other H and W.
  """
  shorter = min(image.shape[:2])
  if shorter <= size:
    return image
  height, width = (max(round(length * size / shorter), 1) for length in image.shape[:2])
  return _area_means(image, height, width)


def _area_means(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Means of uint8 [H, W, 3] over a grid of height x width equal areas, for H > height and W > width.

  The sums are integers, so the means are exact and the same on every machine. Halves round to even, as in the listings.
  """
  old_height, old_width = image.shape[:2]
  rows, row_unit = _area_sums(image.reshape(old_height, -1), height, 255)
  columns = np.ascontiguousarray(rows.reshape(height, old_width, 3).swapaxes(0, 1))
  sums, column_unit = _area_sums(columns.reshape(old_width, -1), width, 255 * row_unit)
  sums = sums.reshape(width, height, 3).swapaxes(0, 1)
  return np.rint(sums / (row_unit * column_unit)).astype(np.uint8)


def _area_sums(x: np.ndarray, count: int, largest: int) -> tuple[np.ndarray, int]:
  """Weighted sums of integers [L, C] over `count` intervals of equal length L / count along the first axis.

  An item that two intervals share counts in proportion to its overlap with each.

  Args:
    x: the integers.
    count: number of intervals.
    largest: no item is larger. The sums are computed in the smallest type that holds them.

  Returns:
    Integers [count, C], and the sum of the weights of an interval.
  """
  indices, weights, unit = _intervals(len(x), count)
  dtype = next(t for t in (np.uint16, np.int32, np.int64) if largest * unit <= np.iinfo(t).max)
  total = np.zeros((count, x.shape[1]), dtype)
  for items, weight in zip(indices, weights, strict=True):
    part = x[items].astype(dtype)
    total += part if np.all(weight == 1) else part * weight.astype(dtype)[:, None]
  return total, unit


@functools.lru_cache(maxsize=512)
def _intervals(length: int, count: int) -> tuple[np.ndarray, np.ndarray, int]:
  """The items of `count` intervals of equal length over `length` items, and their overlaps as small integers.

  Returns:
    Indices [K, count] and weights [K, count] of the up to K items of each interval, and the sum of the weights of an
    interval. An interval of fewer items has the weight 0 for the others.
  """
  bounds = np.arange(count + 1) * length  # in units of 1 / count items
  first, last = bounds[:-1] // count, -(-bounds[1:] // count)
  items = first[:, None] + np.arange(int((last - first).max()))
  overlap = np.minimum((items + 1) * count, bounds[1:, None]) - np.maximum(items * count, bounds[:-1, None])
  overlap = np.maximum(overlap, 0)
  divisor = int(np.gcd.reduce(overlap, axis=None))
  return np.minimum(items, length - 1).T, (overlap // divisor).T, length // divisor


def fit_bicubic(image: np.ndarray, size: int) -> np.ndarray:
  """Resizes an image so that its shorter side is `size`, and crops the middle square, like CLIP's preprocessing.

  It uses Pillow's bicubic filter, which widens its support when it reduces an image. An image whose shorter side is
  `size` is not resampled.

  Args:
    image: uint8 [H, W, 3].
    size: height and width of the result in pixels.

  Returns:
    uint8 [size, size, 3].
  """
  height, width = (size * length // min(image.shape[:2]) for length in image.shape[:2])
  if (height, width) != image.shape[:2]:
    image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
  return _square(image, size, round((height - size) / 2), round((width - size) / 2))
