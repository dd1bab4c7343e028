"""Coding of pictures in chunks of square tiles: a tile's dVAE codes and, in lossless mode, its pixels.

A picture of any size is cut into tiles of the size that the dVAE was trained on. Tiles that reach over the right or
bottom edge are padded with copies of the edge. The padding is not coded. A lossless chunk has the codes of all its
tiles first, then their pixels (`compression.pixels`).
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.compression import frequencies
from dalle_jax.compression.coders import CODERS, check_capacity
from dalle_jax.compression.container import Chunk, Damaged, Unreadable
from dalle_jax.compression.pixels import PixelCoder, valid_values
from dalle_jax.compression.sequences import IRREPRODUCIBLE, SequenceCoder
from dalle_jax.files import shown
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.stream import TokenStream

_LONGEST_NAME = 240  # bytes; most file systems allow 255
_LONGEST_PATH, _MOST_FOLDERS = 4096, 256  # bytes, and names in a path
_MOST_PIXELS = 1 << 30


@dataclasses.dataclass
class PictureCosts:
  """What the chunks cost under the model: -log2 p, without the entropy coder's overhead."""

  codes: float = 0.0  # bits of the captions and codes
  pixels: float = 0.0  # bits of the pixels; 0 in lossy mode
  num_tokens: int = 0  # caption tokens and codes
  num_values: int = 0  # pixel values, three per pixel
  squared_error: float = 0.0  # of the reconstructions, summed over pixel values


def listing(
  settings: dict[str, Any], size: int, max_pixels: int = _MOST_PIXELS
) -> tuple[list[str], list[tuple[int, int]]]:
  """Read the list of pictures from a header and validate it, because the header may be malicious.

  Encoders call this before they start, so that they never write a list that decoders refuse.

  Args:
    settings: the header's settings, of any content.
    size: rows and columns of a tile, in pixels.
    max_pixels: the largest number of pixels of a picture.

  Returns:
    The pictures' names and their shapes (rows, columns).

  Raises:
    Unreadable: a value is invalid, or a name is not the relative path of a file.
  """
  names: list[str] = []
  shapes: list[tuple[int, int]] = []
  seen: set[str] = set()
  try:
    listed, tile = settings['pictures'], settings['size']
    if tile != size:
      raise ValueError(f'it has tiles of {shown(repr(tile))} pixels; the model has {size}')
    if not all(type(settings[name]) is bool for name in ('lossless', 'single')):
      raise ValueError(
        f'lossless is {shown(repr(settings["lossless"]))} and single is {shown(repr(settings["single"]))}; both must '
        'be true or false'
      )
    for name, height, width in listed:
      if not _is_plain(name):
        raise ValueError(
          f'it has a picture named {shown(repr(name))}; a name must be a relative path without .., backslashes and '
          f'zero bytes, with at most {_LONGEST_PATH} bytes and {_MOST_FOLDERS} names, of which the last has at '
          f'most {_LONGEST_NAME} bytes'
        )
      path = PurePosixPath(name)
      if name in seen or seen & {str(parent) for parent in path.parents}:
        raise ValueError(f'it has two pictures that would both be written to {shown(repr(name))}')
      sides = (height, width)
      if not all(type(side) is int and 0 < side <= 1 << 20 for side in sides) or height * width > _MOST_PIXELS:
        raise ValueError(
          f'it has a picture of {shown(repr(height), 30)} x {shown(repr(width), 30)} pixels; a side must lie in 1 to '
          f'{1 << 20:,}, and there may be at most {_MOST_PIXELS:,} pixels'
        )
      if height * width > max_pixels:
        raise ValueError(
          f'it has a picture of {height:,} x {width:,} pixels, more than the limit of {max_pixels:,}; raise it with '
          '--max_image_pixels if you trust the file'
        )
      names.append(name)
      seen.add(name)
      shapes.append((height, width))
    if not names or (settings['single'] and len(names) > 1):
      raise ValueError(f'it has {len(names)} pictures; it must have {"one" if settings["single"] else "at least one"}')
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise Unreadable(f'its list of pictures cannot be used: {shown(error, 500)}') from None
  return names, shapes


def _is_plain(name: Any) -> bool:
  """Whether a name from a header is the relative path of a file that may be written."""
  if not isinstance(name, str) or len(name.encode()) > _LONGEST_PATH:
    return False
  path = PurePosixPath(name)
  is_inside = bool(path.name) and not path.is_absolute() and '..' not in path.parts and '\\' not in name
  is_short = len(path.parts) <= _MOST_FOLDERS and len(path.name.encode()) <= _LONGEST_NAME
  return is_inside and is_short and '\0' not in name


def tile_sizes(height: int, width: int, size: int) -> list[tuple[int, int]]:
  """The valid pixels (rows, columns) of each tile of a picture, that is, without padding. Tiles go row by row."""
  return [
    (min(size, height - top), min(size, width - left))
    for top in range(0, height, size)
    for left in range(0, width, size)
  ]


def cut(image: np.ndarray, size: int) -> np.ndarray:
  """Cut a picture uint8 [H, W, 3] into tiles [n, size, size, 3], row by row, padded with copies of its edge."""
  rows, columns = (-(-side // size) for side in image.shape[:2])
  padding = [(0, rows * size - image.shape[0]), (0, columns * size - image.shape[1]), (0, 0)]
  padded = np.pad(image, padding, mode='edge').reshape(rows, size, columns, size, 3)
  return padded.swapaxes(1, 2).reshape(-1, size, size, 3)


def join(tiles: np.ndarray, height: int, width: int) -> np.ndarray:
  """Join tiles [n, size, size, 3] to a picture uint8 [height, width, 3]; the inverse of `cut`."""
  size = tiles.shape[1]
  rows, columns = -(-height // size), -(-width // size)
  padded = tiles.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)
  return padded[:height, :width]


class PictureCoder:
  """Encodes tiles to payloads and decodes them. A chunk has at most as many tiles as the sequence coder has rows."""

  def __init__(
    self, dvae: Dvae, params: Any, min_log_scale: float, sequences: SequenceCoder, stream: TokenStream, coder: str,
    lossless: bool,
  ):  # fmt: skip
    """Args:
    dvae: the dVAE module.
    params: the dVAE's parameters, on one device.
    min_log_scale: lower bound of the decoder's ln b, as in training (`config.dvae.min_log_scale`).
    sequences: codes the tokens.
    stream: converts captions and codes to token sequences.
    coder: a key of CODERS.
    lossless: whether to code the pixels too.
    """
    self.lossless, self.num_tiles = lossless, sequences.batch_size
    self._params, self._floor = {'params': params}, np.float32(min_log_scale)
    self._sequences, self._stream, self._coder = sequences, stream, coder
    self._codes = jax.jit(lambda params, image: dvae.apply(params, image, method='encode'))
    self._stats = jax.jit(lambda params, codes: dvae.apply(params, codes, method='decode_stats'))
    self._image = jax.jit(lambda params, codes: dvae.apply(params, codes, method='decode'))
    self._pixels = PixelCoder()

  def _fill(self, rows: np.ndarray) -> np.ndarray:
    """Pad rows [n, ...] with zeros to the batch size: [num_tiles, ...]."""
    return np.pad(rows, [(0, self.num_tiles - len(rows))] + [(0, 0)] * (rows.ndim - 1))

  def encode(
    self, tiles: np.ndarray, sizes: Sequence[tuple[int, int]], text: np.ndarray, costs: PictureCosts
  ) -> tuple[bytes, bytes]:
    """Encode a chunk.

    Args:
      tiles: uint8 [n, S, S, 3], n at most `num_tiles`.
      sizes: valid pixels (rows, columns) of each tile.
      text: caption ids of each tile, [n, text length].
      costs: totals; the chunk's costs are added to them.

    Returns:
      The chunk's payload and its content: the tokens as int32 and, in lossless mode, the valid pixel values.
    """
    encoder = CODERS[self._coder][0]()
    with frequencies.exactly():
      codes = np.asarray(self._codes(self._params, self._fill(tiles)))
    streams = self._stream.stream(jnp.asarray(self._fill(text)), jnp.asarray(codes.reshape(len(codes), -1)))
    tokens = np.asarray(streams)[: len(tiles)]
    costs.codes += self._sequences.encode(list(tokens), encoder) / math.log(2)
    costs.num_tokens += tokens.size
    content = tokens.astype('<i4').tobytes()
    reconstructions = self.reconstruct(tokens)
    for tile, reconstruction, (rows, columns) in zip(tiles, reconstructions, sizes, strict=True):
      error = tile[:rows, :columns].astype(np.float64) - reconstruction[:rows, :columns]
      costs.squared_error += float(np.sum(error**2))
      costs.num_values += error.size
    if self.lossless:
      costs.pixels += self._pixels.encode(*self._distributions(tokens), tiles, sizes, encoder)
      content += valid_values(tiles, sizes).tobytes()
    return encoder.finish(), content

  def decode(self, chunk: Chunk, sizes: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Decode a chunk.

    Args:
      chunk: the chunk, as read from the file.
      sizes: valid pixels (rows, columns) of each tile that the chunk must have.

    Returns:
      Tiles uint8 [n, S, S, 3], token sequences int32 [n, T], and the chunk's content.

    Raises:
      Damaged: the chunk's number of tiles differs from the number of `sizes`, or the payload cannot hold that many.
    """
    if chunk.count != len(sizes):
      raise Damaged(f'a chunk claims {chunk.count} tiles instead of {len(sizes)}')
    check_capacity(self._coder, chunk.payload, self._sequences.length * len(sizes), 'tokens')
    decoder = CODERS[self._coder][1](chunk.payload)
    tokens = np.stack(self._sequences.decode([self._sequences.length] * len(sizes), decoder))
    content = tokens.astype('<i4').tobytes()
    if not self.lossless:
      return self.reconstruct(tokens), tokens, content
    tiles = self._pixels.decode(*self._distributions(tokens), sizes, decoder)
    return tiles, tokens, content + valid_values(tiles, sizes).tobytes()

  def verify(self, payload: bytes, content: bytes, sizes: Sequence[tuple[int, int]]) -> None:
    """Check that a payload decodes to the content that it was encoded from.

    Raises:
      ValueError: it decodes to other content.
    """
    if self.decode(Chunk(len(sizes), 0, payload), sizes)[2] != content:
      raise ValueError(IRREPRODUCIBLE)

  def reconstruct(self, tokens: np.ndarray) -> np.ndarray:
    """The dVAE's reconstructions, uint8 [n, S, S, 3], from token sequences [n, T]."""
    image = self._image(self._params, self._grids(tokens))
    return np.asarray(jnp.round(image).astype(jnp.uint8))[: len(tokens)]

  def _grids(self, tokens: np.ndarray) -> np.ndarray:
    """The codes [num_tiles, h, w] of token sequences [n, T]."""
    # Damaged data may decode to tokens that are not image codes.
    codes = np.clip(self._stream.codes(tokens), 0, self._stream.image_vocab_size - 1)
    codes = self._fill(codes)
    side = math.isqrt(codes.shape[1])
    return codes.reshape(-1, side, side)

  def _distributions(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The decoder's location mu and scale ln b for every pixel value, float32 [n, S, S, 3] each."""
    with frequencies.exactly():
      stats = np.asarray(self._stats(self._params, self._grids(tokens)), np.float32)[: len(tokens)]
    location, log_scale = np.split(stats, 2, axis=-1)
    return location, np.maximum(log_scale, self._floor)
