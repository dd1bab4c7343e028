"""Which codes of a picture stay when the rest is drawn anew: top rows, a rectangle, or all but a mask."""

import numpy as np

VARIATION_EXPONENT = 2.0


def top(size: int, share: float) -> np.ndarray:
  """Bool [size, size], true in the rows that lie in the top `share` of the picture whole.

  Raises:
    ValueError: the share is not between 0 and 1.
  """
  if not 0 <= share <= 1:
    raise ValueError(f'--keep_top is {share:g}; it must lie in 0 to 1, the share of the picture that stays.')
  return box(size, (0.0, 0.0, 1.0, share))


def box(size: int, sides: tuple[float, float, float, float], flag: str = '--keep_box') -> np.ndarray:
  """Bool [size, size], true in the cells that lie in a rectangle whole.

  Args:
    size: cells along a side of the picture.
    sides: left, top, right, bottom as shares of the picture, 0 to 1.
    flag: for messages.

  Raises:
    ValueError: the sides are no rectangle in the picture.
  """
  left, upper, right, lower = sides
  if not (0 <= left <= right <= 1 and 0 <= upper <= lower <= 1):
    raise ValueError(
      f'{flag} is {",".join(f"{side:g}" for side in sides)}; it must be LEFT,TOP,RIGHT,BOTTOM as shares of the picture '
      'with 0 <= LEFT <= RIGHT <= 1 and 0 <= TOP <= BOTTOM <= 1.'
    )
  begins, ends = np.arange(size) / size, (np.arange(size) + 1) / size
  tiny = 1e-6 / size  # shares such as 1/3 are not exact
  inside = [(begins >= a - tiny) & (ends <= b + tiny) for a, b in ((upper, lower), (left, right))]
  return inside[0][:, None] & inside[1][None]


def touched(size: int, sides: tuple[float, float, float, float], flag: str) -> np.ndarray:
  """Bool [size, size], true in the cells of which some part lies in a rectangle; arguments as for `box`."""
  box(size, sides, flag)  # for its checks
  left, upper, right, lower = sides
  begins, ends = np.arange(size) / size, (np.arange(size) + 1) / size
  tiny = 1e-6 / size
  across = [(ends > a + tiny) & (begins < b - tiny) for a, b in ((upper, lower), (left, right))]
  return across[0][:, None] & across[1][None]


def from_pixels(keep: np.ndarray, size: int) -> np.ndarray:
  """Bool [size, size], true in the cells all of whose pixels stay; keep is bool [H, H], H a multiple of size."""
  side = len(keep) // size
  assert keep.shape == (size * side, size * side), (keep.shape, size)
  return keep.reshape(size, side, size, side).all(axis=(1, 3))


def has_holes(keep: np.ndarray) -> bool:
  """Whether something that stays comes after something that is drawn, in raster order; keep [h, w]."""
  flat = keep.reshape(-1)
  return bool(flat[np.argmin(flat) :].any())


def variation_bonus(strength: float) -> float:
  """The log of what multiplies the odds of a picture's own codes to vary it, in nats: -2 ln(strength).

  The odds of staying are multiplied by strength^-2. A strength of 1 leaves nothing of the picture, and the smaller it
  is, the less plausible a code may be and still stay.

  Raises:
    ValueError: the strength is not above 0 and at most 1.
  """
  if not 0 < strength <= 1:
    raise ValueError(f'--variation is {strength:g}; it must be above 0 (the picture itself) and at most 1 (a new one).')
  return float(-VARIATION_EXPONENT * np.log(strength))
