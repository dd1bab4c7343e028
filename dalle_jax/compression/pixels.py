"""Lossless coding of the pixels of tiles, given the pixel distributions of the dVAE's decoder.

Each value is coded with a mixture of two distributions:
- the decoder's logit-Laplace distribution (appendix A.3), with a shift of its ln b;
- the values of the same channel in the pixels to the left and above.

The shift and the neighbours' weight are chosen for each tile and coded before the pixels. They correct two weaknesses
of the decoder: its scale does not follow its error on each tile, and it does not know that drawings have flat areas.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.compression import frequencies
from dalle_jax.compression.coders import SymbolDecoder, SymbolEncoder
from dalle_jax.compression.frequencies import TOTAL

Sizes = Sequence[tuple[int, int]]  # valid pixels of each tile: rows and columns without padding
SHIFTS = np.arange(2, -14, -1, dtype=np.float32) * np.float32(math.log(2) / 2)  # added to ln b: b times 2 to 2^-6.5
WEIGHTS = np.array([0, 512, 768, 896, 960, 992, 1008, 1020])  # the neighbours' share of the mixture, out of 1024
_CHOICES = len(SHIFTS) * len(WEIGHTS)
_UNIFORM = np.linspace(0, TOTAL, _CHOICES + 1).astype(np.int32)  # cumulative distribution of the choices
_BATCH = 8_192  # pixel values whose distributions are computed at a time
_OUTSIDE = 255  # both neighbours of the first pixel


class PixelCoder:
  """Codes the pixel values of tiles with an entropy coder."""

  def __init__(self) -> None:
    self._frequencies = jax.jit(frequencies.of_pixels)
    self._costs = jax.jit(_costs)

  def encode(
    self, location: np.ndarray, log_scale: np.ndarray, tiles: np.ndarray, sizes: Sizes, encoder: SymbolEncoder
  ) -> float:
    """Encode tiles.

    Args:
      location: float32 [n, S, S, 3], mu of the logits of the mapped pixels.
      log_scale: float32 [n, S, S, 3], ln b.
      tiles: uint8 [n, S, S, 3].
      sizes: valid pixels (rows, columns) of each tile; only these are coded.
      encoder: gets the symbols.

    Returns:
      The cost under the mixtures, in bits: -log2 p of all choices and values.
    """
    tile_neighbours = np.stack([neighbours(tile) for tile in tiles])
    costs = np.asarray(self._costs(location, log_scale, tiles, tile_neighbours))
    choices = costs.reshape(_CHOICES, len(tiles)).argmin(axis=0)
    for choice in choices:
      encoder.put(_UNIFORM, int(choice))
    bits, begin = len(tiles) * math.log2(_CHOICES), 0
    values, near = valid_values(tiles, sizes), valid_values(tile_neighbours, sizes)
    weights = _repeat_per_value(WEIGHTS[choices % len(WEIGHTS)], sizes)
    for table in self._tables(location, log_scale, choices, sizes):
      batch = slice(begin, begin + len(table))
      sums = mix(table, weights[batch], near[batch])
      for row, value in zip(sums, values[batch].tolist(), strict=True):
        encoder.put(row, value)
      widths = np.take_along_axis(np.diff(sums), values[batch, None].astype(np.int64), axis=1)
      bits += float(np.sum(-np.log2(widths / TOTAL)))
      begin += len(table)
    return bits

  def decode(self, location: np.ndarray, log_scale: np.ndarray, sizes: Sizes, decoder: SymbolDecoder) -> np.ndarray:
    """Decode tiles uint8 [n, S, S, 3]; padding pixels are 0. `location`, `log_scale` and `sizes` are as in `encode`."""
    choices = np.array([decoder.get(_UNIFORM) for _ in sizes], np.int64)
    tiles, weights = np.zeros(location.shape, np.uint8), WEIGHTS[choices % len(WEIGHTS)]
    rows = (row for table in self._tables(location, log_scale, choices, sizes) for row in table[:, None])
    for tile, weight, (height, width) in zip(tiles, weights, sizes, strict=True):
      for y, x, channel in np.ndindex(height, width, 3):
        near = _neighbours_of(tile, y, x, channel)[None]
        tile[y, x, channel] = decoder.get(mix(next(rows), weight[None], near)[0])
    return tiles

  def _tables(
    self, location: np.ndarray, log_scale: np.ndarray, choices: np.ndarray, sizes: Sizes
  ) -> Iterator[np.ndarray]:
    """Yield the cumulative frequencies int32 [m, 257] of the valid values, before the mixture, batch by batch."""
    shifts = SHIFTS[choices // len(WEIGHTS)][:, None, None, None]
    parameters = valid_values(location, sizes), valid_values(log_scale + shifts, sizes)
    for begin in range(0, len(parameters[0]), _BATCH):
      batch = [values[begin : begin + _BATCH] for values in parameters]
      count = len(batch[0])
      table = self._frequencies(*(np.pad(values, (0, _BATCH - count)) for values in batch))
      yield frequencies.cumulative(np.asarray(table)[:count])


def mix(sums: np.ndarray, weight: np.ndarray, near: np.ndarray) -> np.ndarray:
  """Mix distributions with two neighbour values, in integer arithmetic.

  Args:
    sums: int32 [m, 257], cumulative frequencies.
    weight: [m], the share of the two values together, out of 1024.
    near: uint8 [m, 2], the two values; they may be equal.

  Returns:
    int32 [m, 257], increasing from 0 to 2^PRECISION.
  """
  value = np.arange(sums.shape[1])
  scaled = ((sums - value) * (1024 - weight[:, None]) >> 10) + value  # every value keeps a frequency of at least 1
  rest = TOTAL - scaled[:, -1]
  half = np.stack([rest // 2, rest - rest // 2], axis=1)
  return (scaled + half[:, :1] * (value > near[:, :1]) + half[:, 1:] * (value > near[:, 1:])).astype(np.int32)


def neighbours(tile: np.ndarray) -> np.ndarray:
  """The values to the left and above, uint8 [S, S, 3, 2], of all values of a tile [S, S, 3].

  In the first row and the first column, the one existing neighbour counts twice. Both neighbours of the first pixel are
  `_OUTSIDE`.
  """
  left, up = np.empty_like(tile), np.empty_like(tile)
  left[:, 1:], up[1:] = tile[:, :-1], tile[:-1]
  up[0, 0] = left[0, 0] = _OUTSIDE
  up[0, 1:], left[1:, 0] = left[0, 1:], up[1:, 0]
  return np.stack([left, up], axis=-1)


def _neighbours_of(tile: np.ndarray, y: int, x: int, channel: int) -> np.ndarray:
  """`neighbours(tile)[y, x, channel]`, for a tile that is decoded only up to this value."""
  left = tile[y, x - 1, channel] if x else tile[y - 1, x, channel] if y else _OUTSIDE
  up = tile[y - 1, x, channel] if y else left
  return np.array([left, up])


def valid_values(tiles: np.ndarray, sizes: Sizes) -> np.ndarray:
  """The values of tiles [n, S, S, 3, ...] without padding, as one array [M, ...], tile by tile."""
  cropped = [
    tile[:rows, :columns].reshape(-1, *tile.shape[3:]) for tile, (rows, columns) in zip(tiles, sizes, strict=True)
  ]
  return np.concatenate(cropped)


def _repeat_per_value(values: np.ndarray, sizes: Sizes) -> np.ndarray:
  """Repeat a number per tile [n] for each of the tile's valid values: [M], in the order of `valid_values`."""
  return np.repeat(values, [3 * rows * columns for rows, columns in sizes])


def _costs(location: jax.Array, log_scale: jax.Array, tiles: jax.Array, near: jax.Array) -> jax.Array:
  """The cost of each tile with each shift and weight, to choose the best.

  Padding pixels count too: they are copies of the edge, so we do not mask them.

  Args:
    location: float32 [n, S, S, 3], as in `PixelCoder.encode`.
    log_scale: float32 [n, S, S, 3], as in `PixelCoder.encode`.
    tiles: uint8 [n, S, S, 3].
    near: uint8 [n, S, S, 3, 2], the neighbours of each value.

  Returns:
    float32 [len(SHIFTS), len(WEIGHTS), n], in nats.
  """
  equal = jnp.mean((near == tiles[..., None]).astype(jnp.float32), axis=-1)

  def cost(shift: jax.Array) -> jax.Array:
    probs = jnp.exp(-frequencies.pixel_nats(location, log_scale + shift, tiles))

    def with_weight(weight: jax.Array) -> jax.Array:
      return -jnp.sum(jnp.log((1 - weight) * probs + weight * equal), axis=(1, 2, 3))

    return jax.lax.map(with_weight, jnp.asarray(WEIGHTS, jnp.float32) / 1024)

  return jax.lax.map(cost, jnp.asarray(SHIFTS))
