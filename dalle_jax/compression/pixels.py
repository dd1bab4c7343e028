"""Coding the pixels of tiles without loss, given what the dVAE's decoder says of them.

Each value is coded by a mixture: the decoder's distribution (appendix A.3) with its ln b shifted, and the values of the
same channel to the left and above. How far to shift and how much the neighbours weigh is chosen for each tile and coded
before its pixels: the decoder knows neither how close it comes to this tile nor that much of a drawn picture is flat.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.compression import frequencies
from dalle_jax.compression.coders import SymbolDecoder, SymbolEncoder
from dalle_jax.compression.frequencies import TOTAL

Sizes = Sequence[tuple[int, int]]  # own pixels of each tile, rows and columns
SHIFTS = np.arange(2, -14, -1, dtype=np.float32) * np.float32(math.log(2) / 2)  # of ln b: factors of 2 to 2^-6.5
WEIGHTS = np.array([0, 512, 768, 896, 960, 992, 1008, 1020])  # of the neighbours, in parts of 1024
_CHOICES = len(SHIFTS) * len(WEIGHTS)
_EVEN = np.linspace(0, TOTAL, _CHOICES + 1).astype(np.int32)
_PIECE = 8_192  # values whose distributions are held at a time
_OUTSIDE = 255  # what stands beside the first value


class PixelCoder:
  """Values of tiles to and from an entropy coder."""

  def __init__(self) -> None:
    self._frequencies = jax.jit(frequencies.of_pixels)
    self._costs = jax.jit(_costs)

  def encode(
    self, location: np.ndarray, log_scale: np.ndarray, tiles: np.ndarray, sizes: Sizes, encoder: SymbolEncoder
  ) -> float:
    """Codes tiles uint8 [n, S, S, 3]; returns what that costs by the mixtures, in bits.

    Args:
      location: float32 [n, S, S, 3], of the logits of the mapped pixels.
      log_scale: float32 [n, S, S, 3], ln b.
      tiles: the pixels.
      sizes: those of each that are coded.
      encoder: for the symbols.
    """
    beside = np.stack([neighbours(tile) for tile in tiles])
    costs = np.asarray(self._costs(location, log_scale, tiles, beside))
    choices = costs.reshape(_CHOICES, len(tiles)).argmin(axis=0)
    for choice in choices:
      encoder.put(_EVEN, int(choice))
    bits, at = len(tiles) * math.log2(_CHOICES), 0
    values, near, weights = own(tiles, sizes), own(beside, sizes), _of_each(WEIGHTS[choices % len(WEIGHTS)], sizes)
    for table in self._tables(location, log_scale, choices, sizes):
      part = slice(at, at + len(table))
      sums = mix(table, weights[part], near[part])
      for row, value in zip(sums, values[part].tolist(), strict=True):
        encoder.put(row, value)
      widths = np.take_along_axis(np.diff(sums), values[part, None].astype(np.int64), axis=1)
      bits += float(np.sum(-np.log2(widths / TOTAL)))
      at += len(table)
    return bits

  def decode(self, location: np.ndarray, log_scale: np.ndarray, sizes: Sizes, decoder: SymbolDecoder) -> np.ndarray:
    """The tiles uint8 [n, S, S, 3]; zeros where pixels are not coded. The arguments are those of `encode`."""
    choices = np.array([decoder.get(_EVEN) for _ in sizes], np.int64)
    tiles, weights = np.zeros(location.shape, np.uint8), WEIGHTS[choices % len(WEIGHTS)]
    rows = (row for table in self._tables(location, log_scale, choices, sizes) for row in table[:, None])
    for tile, weight, (height, width) in zip(tiles, weights, sizes, strict=True):
      for y, x, channel in np.ndindex(height, width, 3):
        near = _beside(tile, y, x, channel)[None]
        tile[y, x, channel] = decoder.get(mix(next(rows), weight[None], near)[0])
    return tiles

  def _tables(
    self, location: np.ndarray, log_scale: np.ndarray, choices: np.ndarray, sizes: Sizes
  ) -> Iterator[np.ndarray]:
    """The decoder's cumulative frequencies int32 [m, 257] of the own values, piece by piece."""
    shifts = SHIFTS[choices // len(WEIGHTS)][:, None, None, None]
    parts = own(location, sizes), own(log_scale + shifts, sizes)
    for begin in range(0, len(parts[0]), _PIECE):
      piece = [values[begin : begin + _PIECE] for values in parts]
      count = len(piece[0])
      found = self._frequencies(*(np.pad(values, (0, _PIECE - count)) for values in piece))
      yield frequencies.cumulative(np.asarray(found)[:count])


def mix(sums: np.ndarray, weight: np.ndarray, near: np.ndarray) -> np.ndarray:
  """Cumulative frequencies with a share for two values, in integers.

  Args:
    sums: int32 [m, 257], cumulative.
    weight: [m], the share in parts of 1024.
    near: uint8 [m, 2], the two values, which may be one.

  Returns:
    int32 [m, 257], again from 0 to 2^PRECISION and increasing.
  """
  value = np.arange(sums.shape[1])
  less = ((sums - value) * (1024 - weight[:, None]) >> 10) + value  # at least 1 remains for each value
  rest = TOTAL - less[:, -1]
  half = np.stack([rest // 2, rest - rest // 2], axis=1)
  return (less + half[:, :1] * (value > near[:, :1]) + half[:, 1:] * (value > near[:, 1:])).astype(np.int32)


def neighbours(tile: np.ndarray) -> np.ndarray:
  """The values to the left of and above each, uint8 [S, S, 3, 2], of a tile [S, S, 3]; see `_beside`."""
  left, up = np.empty_like(tile), np.empty_like(tile)
  left[:, 1:], up[1:] = tile[:, :-1], tile[:-1]
  up[0, 0] = left[0, 0] = _OUTSIDE
  up[0, 1:], left[1:, 0] = left[0, 1:], up[1:, 0]
  return np.stack([left, up], axis=-1)


def _beside(tile: np.ndarray, y: int, x: int, channel: int) -> np.ndarray:
  """The same of one value; at an edge the one neighbour stands for both."""
  left = tile[y, x - 1, channel] if x else tile[y - 1, x, channel] if y else _OUTSIDE
  up = tile[y - 1, x, channel] if y else left
  return np.array([left, up])


def own(tiles: np.ndarray, sizes: Sizes) -> np.ndarray:
  """The own values of tiles [n, S, S, 3, ...] as one array [M, ...], tile by tile."""
  parts = [
    tile[:rows, :columns].reshape(-1, *tile.shape[3:]) for tile, (rows, columns) in zip(tiles, sizes, strict=True)
  ]
  return np.concatenate(parts)


def _of_each(values: np.ndarray, sizes: Sizes) -> np.ndarray:
  """A tile's number [n] for each of its own values [M]."""
  return np.repeat(values, [3 * rows * columns for rows, columns in sizes])


def _costs(location: jax.Array, log_scale: jax.Array, tiles: jax.Array, beside: jax.Array) -> jax.Array:
  """What tiles [n, S, S, 3] cost with each of SHIFTS and WEIGHTS, nats [len(SHIFTS), len(WEIGHTS), n].

  Pixels that are not coded count too: they are copies of an edge.
  """
  equal = jnp.mean((beside == tiles[..., None]).astype(jnp.float32), axis=-1)

  def cost(shift: jax.Array) -> jax.Array:
    probs = jnp.exp(-frequencies.pixel_nats(location, log_scale + shift, tiles))

    def with_weight(weight: jax.Array) -> jax.Array:
      return -jnp.sum(jnp.log((1 - weight) * probs + weight * equal), axis=(1, 2, 3))

    return jax.lax.map(with_weight, jnp.asarray(WEIGHTS, jnp.float32) / 1024)

  return jax.lax.map(cost, jnp.asarray(SHIFTS))
