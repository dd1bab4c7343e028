"""Which keys a query sees (section 2.2, appendix B.1, figure 11), and dense attention over them.

A sequence holds `text_length` text slots, then the `grid_size`^2 image slots in raster order. A text slot sees the
text slots up to itself. An image slot sees all text slots, and some of the image slots up to itself: those whose
distance back in raster order is one of its pattern's `offsets`. That set states the pattern, once. The dense mask
below, the sparse computation (`sparse_attention`) and the decoding cache (`attention_cache`) are all derived from it.

Distances in raster order wrap around the ends of rows, as the paper's patterns do: the row pattern sees the last
`grid_size` slots and itself, not its own row only.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.models.layout import Layout

KINDS = ('full', 'row', 'column', 'conv')


@dataclasses.dataclass(frozen=True)
class Pattern(Layout):
  """What the slots of one layer see.

  Kinds: 'full', all image slots so far; 'row', back to the slot above; 'column', the slots of the same column;
  'conv', a window of `kernel_size` by `kernel_size` slots around itself, as far as it lies before itself.

  Raises:
    ValueError: the kind is unknown, or the window does not fit the grid.
  """

  kind: str
  text_length: int
  grid_size: int
  kernel_size: int = 11

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise ValueError(f'Attention pattern {self.kind!r} is unknown; there are {", ".join(KINDS)}.')
    if self.kind == 'conv' and (self.kernel_size % 2 == 0 or not 0 < self.kernel_size <= self.grid_size):
      raise ValueError(
        f'A conv pattern of {self.kernel_size} x {self.kernel_size} slots does not fit a grid of {self.grid_size} x '
        f'{self.grid_size}; its size must be odd and at most that of the grid.'
      )

  @functools.cached_property
  def offsets(self) -> tuple[int, ...]:
    """How far back, in raster order, the image slots lie that an image slot sees; ascending from 0, itself."""
    g, h = self.grid_size, self.kernel_size // 2
    found = {
      'full': range(self.image_length),
      'row': range(g + 1),
      'column': range(0, self.image_length, max(g, 1)),
      'conv': (-(row * g + column) for row in range(-h, 1) for column in range(-h, h + 1)),
    }[self.kind]
    return tuple(sorted({offset for offset in found if 0 <= offset < self.image_length}))

  @functools.cached_property
  def stride(self) -> int:
    """Slots apart by no multiple of this never see each other: image slots fall into `stride` separate classes."""
    return math.gcd(*self.offsets) or 1

  @functools.cached_property
  def runs(self) -> tuple[tuple[int, int], ...]:
    """The offsets in units of the stride, as intervals (first, last) without gaps."""
    steps = [offset // self.stride for offset in self.offsets]
    starts = [step for step in steps if step - 1 not in steps]
    ends = [step for step in steps if step + 1 not in steps]
    return tuple(zip(starts, ends, strict=True))

  def mask(self) -> np.ndarray:
    """Bool [length, length]: entry [t, s] says whether slot t sees slot s."""
    text, image = np.arange(self.text_length), np.arange(self.image_length)
    seen = np.zeros((self.length, self.length), bool)
    seen[: self.text_length, : self.text_length] = text[:, None] >= text
    seen[self.text_length :, : self.text_length] = True
    seen[self.text_length :, self.text_length :] = np.isin(image[:, None] - image, self.offsets)
    return seen


@dataclasses.dataclass(frozen=True)
class Unmasked(Layout):
  """Every slot sees every slot, as in encoders; for whole sequences only. The slots count as text."""

  text_length: int
  grid_size: int = 0

  def mask(self) -> np.ndarray:
    """Bool [length, length], all true."""
    return np.ones((self.length, self.length), bool)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | np.ndarray) -> jax.Array:
  """Softmax attention with float32 scores.

  Args:
    query: [B, T, N, H].
    key: [B, S, N, H].
    value: [B, S, N, H].
    mask: bool, broadcastable to [B, N, T, S]; True where the query sees the key.

  Returns:
    [B, T, N, H] in the dtype of `value`.
  """
  return mix(weigh(query, key, mask), value)


def weigh(query: jax.Array, key: jax.Array, mask: jax.Array | np.ndarray) -> jax.Array:
  """The weights of attention, float32 [B, N, T, S]: of every query they sum to 1, and are 0 where it does not see."""
  scores = jnp.einsum('BTNH,BSNH->BNTS', query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
  seen = jnp.broadcast_to(mask, scores.shape)
  return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)


def mix(weights: jax.Array, value: jax.Array) -> jax.Array:
  """Sums of values [B, S, N, H] by weights [B, N, T, S]: [B, T, N, H] in the dtype of `value`."""
  return jnp.einsum('BNTS,BSNH->BTNH', weights.astype(value.dtype), value)
