"""Attention patterns: which keys each query attends to (section 2.2, appendix B.1, figure 11). Dense attention.

A sequence holds `text_length` text slots, followed by `grid_size`^2 image slots in raster order.

- A text slot attends to itself and to all earlier text slots.
- An image slot attends to all text slots, to itself and to some earlier image slots. The pattern's `offsets` are the
  distances, in raster order, to those image slots.

The offsets define the pattern. The dense mask below, the sparse computation (`sparse_attention`) and the decoding cache
(`attention_cache`) are all derived from them.

As in the paper, distances in raster order wrap around the ends of rows. For example, the row pattern does not stop at
the start of the query's row but attends to the previous `grid_size` slots.
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
  """The attention pattern of one layer.

  An image slot attends to itself and, depending on the kind, to these image slots:

  - 'full': all earlier image slots.
  - 'row': the previous `grid_size` image slots, so back to the slot directly above.
  - 'column': the earlier slots of the same column.
  - 'conv': the earlier slots in a window of `kernel_size` x `kernel_size` slots centred on the slot.

  Attributes:
    kind: one of `KINDS`.
    text_length: number of text slots.
    grid_size: image slots along each side of the grid.
    kernel_size: slots along each side of the 'conv' window; the other kinds ignore it.

  Raises:
    ValueError: the kind is unknown, or the window does not fit the grid.
  """

  kind: str
  text_length: int
  grid_size: int
  kernel_size: int = 11

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise ValueError(f'Attention pattern {self.kind!r} is unknown; choose one of {", ".join(KINDS)}.')
    if self.kind == 'conv' and (self.kernel_size % 2 == 0 or not 0 < self.kernel_size <= self.grid_size):
      raise ValueError(
        f'A conv pattern of {self.kernel_size} x {self.kernel_size} slots does not fit a grid of {self.grid_size} x '
        f'{self.grid_size}; kernel_size must be odd and at most {self.grid_size}, the grid size.'
      )

  @functools.cached_property
  def offsets(self) -> tuple[int, ...]:
    """Distances, in raster order, back to the image slots that an image slot attends to; ascending from 0 (itself)."""
    g, h = self.grid_size, self.kernel_size // 2
    candidates = {
      'full': range(self.image_length),
      'row': range(g + 1),
      'column': range(0, self.image_length, max(g, 1)),
      'conv': (-(row * g + column) for row in range(-h, 1) for column in range(-h, h + 1)),
    }[self.kind]
    return tuple(sorted({offset for offset in candidates if 0 <= offset < self.image_length}))

  @functools.cached_property
  def stride(self) -> int:
    """The greatest common divisor of the offsets.

    Two image slots whose distance is not a multiple of the stride never attend to each other. So the image slots fall
    into `stride` independent classes: the columns for 'column', a single class for the other kinds.
    """
    return math.gcd(*self.offsets) or 1

  @functools.cached_property
  def runs(self) -> tuple[tuple[int, int], ...]:
    """The offsets in units of the stride, as maximal intervals (first, last) of consecutive integers."""
    steps = [offset // self.stride for offset in self.offsets]
    starts = [step for step in steps if step - 1 not in steps]
    ends = [step for step in steps if step + 1 not in steps]
    return tuple(zip(starts, ends, strict=True))

  def mask(self) -> np.ndarray:
    """Bool [length, length]: entry [t, s] is True if slot t attends to slot s."""
    text, image = np.arange(self.text_length), np.arange(self.image_length)
    mask = np.zeros((self.length, self.length), bool)
    mask[: self.text_length, : self.text_length] = text[:, None] >= text
    mask[self.text_length :, : self.text_length] = True
    mask[self.text_length :, self.text_length :] = np.isin(image[:, None] - image, self.offsets)
    return mask


@dataclasses.dataclass(frozen=True)
class Unmasked(Layout):
  """The pattern of encoders: every slot attends to every slot.

  It works on whole sequences only; prefill and decoding need a causal pattern. All slots count as text slots.
  """

  text_length: int
  grid_size: int = 0

  def mask(self) -> np.ndarray:
    """Bool [length, length], all True."""
    return np.ones((self.length, self.length), bool)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | np.ndarray) -> jax.Array:
  """Softmax attention with float32 scores.

  Args:
    query: [B, T, N, H].
    key: [B, S, N, H].
    value: [B, S, N, H].
    mask: bool, broadcastable to [B, N, T, S]; True where the query attends to the key.

  Returns:
    [B, T, N, H] in the dtype of `value`.
  """
  return mix(weigh(query, key, mask), value)


def weigh(query: jax.Array, key: jax.Array, mask: jax.Array | np.ndarray) -> jax.Array:
  """Attention weights, float32 [B, N, T, S], for the arguments of `attend`.

  The weights of each query sum to 1. They are 0 where the mask is False.
  """
  scores = jnp.einsum('BTNH,BSNH->BNTS', query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
  mask = jnp.broadcast_to(mask, scores.shape)
  return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)


def mix(weights: jax.Array, value: jax.Array) -> jax.Array:
  """Weighted sums of the values [B, S, N, H] with weights [B, N, T, S]: [B, T, N, H] in the dtype of `value`."""
  return jnp.einsum('BNTS,BSNH->BTNH', weights.astype(value.dtype), value)
