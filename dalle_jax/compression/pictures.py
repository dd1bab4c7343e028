"""Pictures to chunks and back: the codes of square tiles by the sequence model and, without loss, their pixels.

A picture of any size is cut into tiles of the size that the dVAE was trained on; where it does not fill the last ones,
they are continued by its edge, and the pixels that are not its own are not coded. Without loss, each chunk has the
pixels of its tiles after their codes (`compression.pixels`).
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
from dalle_jax.compression.coders import CODERS
from dalle_jax.compression.container import Chunk, Damaged, Unreadable
from dalle_jax.compression.pixels import PixelCoder, own
from dalle_jax.compression.sequences import IRREPRODUCIBLE, SequenceCoder
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.stream import TokenStream

_LONGEST_NAME = 240  # bytes; most file systems have 255


@dataclasses.dataclass
class PictureCosts:
  """What chunks cost by the model itself: the codes with their captions, and the pixels, in bits."""

  codes: float = 0.0
  pixels: float = 0.0
  num_tokens: int = 0
  num_values: int = 0
  squared_error: float = 0.0  # of reconstructions, summed over pixel values


def listing(settings: dict[str, Any], size: int) -> tuple[list[str], list[tuple[int, int]]]:
  """Names and shapes of the pictures, from a header that may say anything; encoders ask before they begin.

  Raises:
    Unreadable: it says what cannot be, or names that cannot be files.
  """
  names, shapes, seen = [], [], set()
  try:
    listed, tile = settings['pictures'], settings['size']
    if tile != size:
      raise ValueError(f'tiles of {tile} pixels, where the model has {size}')
    if not all(type(settings[name]) is bool for name in ('lossless', 'single')):
      raise ValueError('lossless or single is neither true nor false')
    for name, height, width in listed:
      path = PurePosixPath(name)
      if (
        path.is_absolute()
        or '..' in path.parts
        or '\\' in name
        or not path.name
        or len(path.name.encode()) > _LONGEST_NAME
      ):
        raise ValueError(f'a picture named {name!r}')
      if name in seen or seen & {str(parent) for parent in path.parents}:
        raise ValueError(f'two pictures that would both be written to {name!r}')
      if not all(type(side) is int and 0 < side <= 1 << 20 for side in (height, width)) or height * width > 1 << 30:
        raise ValueError(f'a picture of {height} x {width} pixels')
      names.append(name)
      seen.add(name)
      shapes.append((height, width))
    if not names or (settings['single'] and len(names) > 1):
      raise ValueError(f'{len(names)} pictures')
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise Unreadable(f'its list of pictures cannot be used: {error}') from None
  return names, shapes


def tile_sizes(height: int, width: int, size: int) -> list[tuple[int, int]]:
  """The own pixels, (rows, columns), of each tile of a picture, row by row."""
  return [
    (min(size, height - top), min(size, width - left))
    for top in range(0, height, size)
    for left in range(0, width, size)
  ]


def cut(image: np.ndarray, size: int) -> np.ndarray:
  """A picture uint8 [H, W, 3] as tiles [n, size, size, 3], row by row."""
  rows, columns = (-(-side // size) for side in image.shape[:2])
  fill = [(0, rows * size - image.shape[0]), (0, columns * size - image.shape[1]), (0, 0)]
  padded = np.pad(image, fill, mode='edge').reshape(rows, size, columns, size, 3)
  return padded.swapaxes(1, 2).reshape(-1, size, size, 3)


def join(tiles: np.ndarray, height: int, width: int) -> np.ndarray:
  """The inverse of `cut`: uint8 [height, width, 3]."""
  size = tiles.shape[1]
  rows, columns = -(-height // size), -(-width // size)
  whole = tiles.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)
  return whole[:height, :width]


class PictureCoder:
  """Tiles to and from payloads, as many at a time as the sequence coder has rows."""

  def __init__(
    self, dvae: Dvae, params: Any, min_log_scale: float, sequences: SequenceCoder, stream: TokenStream, coder: str,
    lossless: bool,
  ):  # fmt: skip
    """Args:
    dvae: the module.
    params: its parameters, on one device.
    min_log_scale: floor of ln b, as in training.
    sequences: the coder of tokens.
    stream: how captions and codes stand in sequences.
    coder: one of CODERS.
    lossless: whether pixels are coded too.
    """
    self.lossless, self.num_tiles = lossless, sequences.batch_size
    self._params, self._floor = {'params': params}, np.float32(min_log_scale)
    self._sequences, self._stream, self._coder = sequences, stream, coder
    self._codes = jax.jit(lambda params, image: dvae.apply(params, image, method='encode'))
    self._stats = jax.jit(lambda params, codes: dvae.apply(params, codes, method='decode_stats'))
    self._image = jax.jit(lambda params, codes: dvae.apply(params, codes, method='decode'))
    self._pixels = PixelCoder()

  def _fill(self, rows: np.ndarray) -> np.ndarray:
    """Rows up to the batch's number, zeros at the end."""
    return np.pad(rows, [(0, self.num_tiles - len(rows))] + [(0, 0)] * (rows.ndim - 1))

  def encode(
    self, tiles: np.ndarray, sizes: Sequence[tuple[int, int]], text: np.ndarray, costs: PictureCosts
  ) -> tuple[bytes, bytes]:
    """Payload and content of a chunk; adds to `costs`.

    Args:
      tiles: uint8 [n, S, S, 3], n at most the number of rows.
      sizes: own pixels of each.
      text: ids of each one's caption, [n, .].
      costs: what to add to.
    """
    encoder = CODERS[self._coder][0]()
    with frequencies.exactly():
      codes = np.asarray(self._codes(self._params, self._fill(tiles)))
    streams = self._stream.stream(jnp.asarray(self._fill(text)), jnp.asarray(codes.reshape(len(codes), -1)))
    tokens = np.asarray(streams)[: len(tiles)]
    costs.codes += self._sequences.encode(list(tokens), encoder) / math.log(2)
    costs.num_tokens += tokens.size
    content = tokens.astype('<i4').tobytes()
    drawn = self.draw(tokens)
    for tile, other, (rows, columns) in zip(tiles, drawn, sizes, strict=True):
      error = tile[:rows, :columns].astype(np.float64) - other[:rows, :columns]
      costs.squared_error += float(np.sum(error**2))
      costs.num_values += error.size
    if self.lossless:
      costs.pixels += self._pixels.encode(*self._distributions(tokens), tiles, sizes, encoder)
      content += own(tiles, sizes).tobytes()
    return encoder.finish(), content

  def decode(self, chunk: Chunk, sizes: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Tiles uint8 [n, S, S, 3], sequences [n, T] and the content of a chunk.

    Raises:
      Damaged: it claims another number of tiles.
    """
    if chunk.count != len(sizes):
      raise Damaged(f'a chunk claims {chunk.count} tiles in place of {len(sizes)}')
    decoder = CODERS[self._coder][1](chunk.payload)
    tokens = np.stack(self._sequences.decode([self._sequences.length] * len(sizes), decoder))
    content = tokens.astype('<i4').tobytes()
    if not self.lossless:
      return self.draw(tokens), tokens, content
    tiles = self._pixels.decode(*self._distributions(tokens), sizes, decoder)
    return tiles, tokens, content + own(tiles, sizes).tobytes()

  def verify(self, payload: bytes, content: bytes, sizes: Sequence[tuple[int, int]]) -> None:
    """Whether a payload decodes to what it was made of. Raises ValueError."""
    if self.decode(Chunk(len(sizes), 0, payload), sizes)[2] != content:
      raise ValueError(IRREPRODUCIBLE)

  def draw(self, tokens: np.ndarray) -> np.ndarray:
    """Reconstructions uint8 [n, S, S, 3] of sequences [n, T]."""
    image = self._image(self._params, self._grids(tokens))
    return np.asarray(jnp.round(image).astype(jnp.uint8))[: len(tokens)]

  def _grids(self, tokens: np.ndarray) -> np.ndarray:
    codes = np.clip(self._stream.codes(tokens), 0, self._stream.image_vocab_size - 1)  # damaged data decode to anything
    codes = self._fill(codes)
    side = math.isqrt(codes.shape[1])
    return codes.reshape(-1, side, side)

  def _distributions(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Locations and ln b of every pixel value, float32 [n, S, S, 3] each."""
    with frequencies.exactly():
      stats = np.asarray(self._stats(self._params, self._grids(tokens)), np.float32)[: len(tokens)]
    location, log_scale = np.split(stats, 2, axis=-1)
    return location, np.maximum(log_scale, self._floor)
