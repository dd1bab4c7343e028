"""Choose which codes of an image stay when the model samples the others: top rows, a rectangle, or a pixel mask."""

import numpy as np

VARIATION_EXPONENT = 2.0


def top(size: int, share: float) -> np.ndarray:
  """Mark the rows of cells that lie entirely in the top `share` of the image, bool [size, size].

  Raises:
    ValueError: the share is not between 0 and 1.
  """
  if not 0 <= share <= 1:
    raise ValueError(f'--keep_top is {share:g}; it must lie in [0, 1], the share of the image that stays.')
  return box(size, (0.0, 0.0, 1.0, share))


def box(size: int, sides: tuple[float, float, float, float], flag: str = '--keep_box') -> np.ndarray:
  """Mark the cells that lie entirely in a rectangle, bool [size, size].

  Args:
    size: the number of cells along a side of the image.
    sides: left, top, right and bottom as shares of the image's side, 0 to 1.
    flag: the flag that messages name.

  Raises:
    ValueError: the sides do not form a rectangle inside the image.
  """
  left, upper, right, lower = sides
  if not (0 <= left <= right <= 1 and 0 <= upper <= lower <= 1):
    raise ValueError(
      f'{flag} is {",".join(f"{side:g}" for side in sides)}; it must be LEFT,TOP,RIGHT,BOTTOM as shares of the image '
      'with 0 <= LEFT <= RIGHT <= 1 and 0 <= TOP <= BOTTOM <= 1.'
    )
  begins, ends = np.arange(size) / size, (np.arange(size) + 1) / size
  tolerance = 1e-6 / size  # floats do not represent shares such as 1/3 exactly
  rows, columns = [
    (begins >= low - tolerance) & (ends <= high + tolerance) for low, high in ((upper, lower), (left, right))
  ]
  return rows[:, None] & columns[None]


def touched(size: int, sides: tuple[float, float, float, float], flag: str) -> np.ndarray:
  """Mark the cells that overlap a rectangle, bool [size, size]; the arguments are those of `box`."""
  box(size, sides, flag)  # checks the sides
  left, upper, right, lower = sides
  begins, ends = np.arange(size) / size, (np.arange(size) + 1) / size
  tolerance = 1e-6 / size
  rows, columns = [
    (ends > low + tolerance) & (begins < high - tolerance) for low, high in ((upper, lower), (left, right))
  ]
  return rows[:, None] & columns[None]


def from_pixels(keep: np.ndarray, size: int) -> np.ndarray:
  """Mark the cells whose pixels all stay, bool [size, size]; `keep` is bool [H, H], and `size` divides H."""
  side = len(keep) // size
  assert keep.shape == (size * side, size * side), (keep.shape, size)
  return np.asarray(keep.reshape(size, side, size, side).all(axis=(1, 3)))


def has_holes(keep: np.ndarray) -> bool:
  """Whether a kept code follows a sampled code in raster order; `keep` is bool [h, w], True for kept codes."""
  flat = keep.reshape(-1)
  return bool(flat[np.argmin(flat) :].any())


def variation_bonus(strength: float) -> float:
  """The log-odds bonus of an image's own codes in a variation: -2 ln(strength), in nats.

  The odds of keeping a code are multiplied by strength^-2. A strength of 1 gives no bonus: the image has no influence.
  The smaller the strength, the more often an implausible code stays.

  Raises:
    ValueError: the strength is not above 0 and at most 1.
  """
  if not 0 < strength <= 1:
    raise ValueError(f'--variation is {strength:g}; it must be above 0 (the same image) and at most 1 (a new one).')
  return float(-VARIATION_EXPONENT * np.log(strength))
