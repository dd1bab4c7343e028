"""Crop and resize images to squares: plain crops, the DALL-E paper's random crops (Listings 1 and 2), CLIP's crop."""

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


def resize(square: np.ndarray, size: int, resampling: str = 'area') -> np.ndarray:
  """Resizes a square image. Enlarging is bicubic; reducing takes means.

  Args:
    square: uint8 [S, S, 3].
    size: the new side in pixels.
    resampling: how to reduce. 'area' computes the exact mean over the area of each new pixel. 'box' (Pillow's box
      filter) is faster: it averages the old pixels whose centres lie in the new pixel. If `size` divides S, both agree
      up to rounding.

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
  if side > size and resampling == 'area':
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
  rows = _area_sums(image, height)
  sums = _area_sums(rows.swapaxes(0, 1), width).swapaxes(0, 1)
  return np.rint(sums / (image.shape[0] * image.shape[1])).astype(np.uint8)


def _area_sums(x: np.ndarray, count: int) -> np.ndarray:
  """Sums integers [L, W, 3] over `count` intervals of equal length L / count along the first axis.

  An item that two intervals share counts in proportion to its overlap with each.

  Returns:
    int64 [count, W, 3]: the sums times `count`, which makes them integers.
  """
  # Interval j starts inside item first[j], whose fraction remainder[j] / count belongs to the interval before.
  first, remainder = np.divmod(np.arange(count + 1) * len(x), count)
  sums = np.add.reduceat(x, first[:-1], axis=0, dtype=np.int64)
  # The last boundary is the end of x: its index is out of range, but its remainder is 0.
  before_boundary = x[np.minimum(first, len(x) - 1)] * remainder[:, None, None]
  return count * sums - before_boundary[:-1] + before_boundary[1:]


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
