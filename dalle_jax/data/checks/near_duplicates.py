"""Pictures that look alike, by a perceptual hash and a thumbnail, without comparing all pairs.

The hash has 64 bits: the signs of low frequencies of the brightness, relative to their median. It hardly changes when a
picture is scaled, compressed or made brighter. Because it sees no colours, a thumbnail in colour decides too.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 8  # pixels of a thumbnail
MOST_DISTANCE = 3  # bits
MOST_DIFFERENCE = 6.0  # root mean square over the thumbnail, of 255
MOST_LOCAL_DIFFERENCE = 20  # in any pixel of the thumbnail, of 255: another mouth in an equal face is another picture
_SMALL = 32  # pixels of the picture that is hashed
_GREY = np.array([299, 587, 114], np.int32)  # weights of RGB in brightness
_NUM_BANDS, _BAND_BITS = 4, 16
_MOST_COMPARED = 512  # candidates in a band that are compared, the latest first


class Look(NamedTuple):
  """What is compared of a picture."""

  bits: int  # 64 bits
  thumbnail: bytes  # uint8 [SIDE, SIDE, 3]


def reduced(image: Image.Image) -> bytes:
  """An RGB image at the size from which `looks_of` computes its look: uint8 [32, 32, 3]. The aspect ratio is lost."""
  # Averages over all pixels of a photo take as long as decoding it. 16 pixels for each one of the result are enough.
  width, height = (min(length, 4 * _SMALL) for length in image.size)
  if (width, height) != image.size:
    image = image.resize((width, height), Image.Resampling.NEAREST)
  if not width % _SMALL and not height % _SMALL:  # the same means, several times as fast
    image = image.reduce((width // _SMALL, height // _SMALL))
  else:
    image = image.resize((_SMALL, _SMALL), Image.Resampling.BOX)
  return image.tobytes()


def looks_of(images: Sequence[bytes]) -> list[Look]:
  """The looks of images from `reduced`. Many at once take a tenth of the time."""
  small = np.frombuffer(b''.join(images), np.uint8).reshape(len(images), _SMALL, _SMALL, 3).astype(np.int32)
  grey = (small @ _GREY).astype(np.float32) / sum(_GREY)
  frequencies = (_BASIS @ grey @ _BASIS.T).reshape(len(images), 64)
  # A picture of one colour has no frequencies: rounding must not decide its bits.
  frequencies[np.abs(frequencies) < _SMALL / 4] = 0.0
  above = frequencies > np.median(frequencies[:, 1:], axis=1, keepdims=True)
  above[:, 0] = False  # the mean
  bits = np.packbits(above, axis=1)
  step = _SMALL // SIDE
  sums = small.reshape(len(images), SIDE, step, SIDE, step, 3).sum((2, 4))
  thumbnails = (sums // step**2).astype(np.uint8)
  return [
    Look(int.from_bytes(row.tobytes(), 'big'), thumbnail.tobytes())
    for row, thumbnail in zip(bits, thumbnails, strict=True)
  ]


def _cosines() -> np.ndarray:
  """The lowest frequencies of the discrete cosine transform, [8, _SMALL]."""
  places = (np.arange(_SMALL) + 0.5) * math.pi / _SMALL
  return np.cos(np.arange(8)[:, None] * places).astype(np.float32) * math.sqrt(2 / _SMALL)


_BASIS = _cosines()


class LookIndex:
  """Pictures by their looks.

  The 64 bits are cut into four bands. Two hashes that differ in at most three bits have an equal band, so only pictures
  with an equal band are compared.
  """

  def __init__(self, most_distance: int = MOST_DISTANCE, most_difference: float = MOST_DIFFERENCE):
    """
    Args:
      most_distance: the largest number of different bits of near pictures, from 0 to 3.
      most_difference: the largest root mean square difference of their thumbnails, of 255.
    """
    assert 0 <= most_distance < _NUM_BANDS
    self._most_distance = most_distance
    self._most_squares = most_difference**2 * SIDE * SIDE * 3
    self._bands: list[dict[int, list[tuple[int, Look]]]] = [{} for _ in range(_NUM_BANDS)]

  def add(self, number: int, look: Look) -> None:
    """Remember a picture under a number."""
    for band, key in zip(self._bands, _keys(look.bits), strict=True):
      band.setdefault(key, []).append((number, look))

  def find(self, look: Look) -> int | None:
    """The lowest number of a picture that looks alike, or None."""
    near: set[int] = set()
    for band, key in zip(self._bands, _keys(look.bits), strict=True):
      for number, other in band.get(key, ())[-_MOST_COMPARED:]:
        if number not in near and self._is_near(look, other):
          near.add(number)
    return min(near, default=None)

  def _is_near(self, look: Look, other: Look) -> bool:
    if (look.bits ^ other.bits).bit_count() > self._most_distance:
      return False
    if look.thumbnail == other.thumbnail:
      return True
    first, second = (np.frombuffer(each.thumbnail, np.uint8).astype(np.int32) for each in (look, other))
    differences = np.abs(first - second)
    return bool(np.square(differences).sum() <= self._most_squares and differences.max() <= MOST_LOCAL_DIFFERENCE)


def _keys(bits: int) -> list[int]:
  return [bits >> _BAND_BITS * band & (1 << _BAND_BITS) - 1 for band in range(_NUM_BANDS)]
