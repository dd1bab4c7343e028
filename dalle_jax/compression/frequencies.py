"""From a model's numbers to integers: the distributions that encoder and decoder must have alike, bit by bit.

Whatever is computed with floating point is computed by compiled programs that encoder and decoder share, each with
inputs of one shape. What they give in the end are integers, and all that follows is exact on every machine.
"""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.compression.range_coder import PRECISION
from dalle_jax.models import likelihood

TOTAL = 1 << PRECISION
MAX_LOG_SCALE = 20.0  # far beyond what tells pixels apart, and far from where exp overflows


@contextlib.contextmanager
def exactly() -> Iterator[None]:
  """Inside, products have full precision whatever the environment asks for: the setting is a part of what is coded."""
  with jax.default_matmul_precision('highest'):
    yield


def from_probabilities(probs: jax.Array) -> jax.Array:
  """Positive integers that add up to 2^PRECISION.

  Args:
    probs: float32 [..., V], adding up to 1 within rounding.

  Returns:
    int32 [..., V]. What rounding leaves goes to the largest. Where `probs` has NaN, some are 0 or negative.
  """
  size = probs.shape[-1]
  found = jnp.floor(probs * (TOTAL - size)).astype(jnp.int32) + 1
  rest = TOTAL - jnp.sum(found, axis=-1)
  largest = jax.nn.one_hot(jnp.argmax(found, axis=-1), size, dtype=jnp.int32)
  return jnp.where(jnp.isnan(probs), 0, found + largest * rest[..., None])


def of_logits(logits: jax.Array) -> jax.Array:
  """Frequencies int32 [..., V] of logits [..., V]."""
  return from_probabilities(jax.nn.softmax(logits.astype(jnp.float32), axis=-1))


def of_pixels(location: jax.Array, log_scale: jax.Array) -> jax.Array:
  """Frequencies int32 [..., 256] of 8-bit pixel values under the logit-Laplace distribution (appendix A.3).

  The density of the mapped pixels is integrated over each value's bin; those of 0 and 255 reach to the ends.

  Args:
    location: float32 [...], of the logit of the mapped pixel.
    log_scale: float32 [...], ln b; beyond +-MAX_LOG_SCALE the bound is taken for it.
  """
  edges = _EDGES.reshape((1,) * location.ndim + (-1,))
  below = _below(edges, location[..., None], log_scale[..., None])
  return from_probabilities(jnp.maximum(jnp.diff(below, axis=-1), 0))


def pixel_nats(location: jax.Array, log_scale: jax.Array, pixel: jax.Array) -> jax.Array:
  """-ln p of pixel values uint8 [...] under the same distributions, nowhere above that of one in 2^PRECISION."""
  edges = jnp.asarray(_EDGES)
  index = pixel.astype(jnp.int32)
  lower, upper = (_below(edges[i], location, log_scale) for i in (index, index + 1))
  return -jnp.log(jnp.maximum(upper - lower, 1 / TOTAL))


def _edges() -> np.ndarray:
  """Logits of the mapped bounds of each pixel value's bin, float32 [257]."""
  mapped = np.asarray((1 - 2 * likelihood.EPSILON) / 255 * (np.arange(255) + 0.5) + likelihood.EPSILON)
  return np.concatenate([[-np.inf], np.log(mapped) - np.log1p(-mapped), [np.inf]]).astype(np.float32)


_EDGES = _edges()


def _below(edge: jax.Array | np.ndarray, location: jax.Array, log_scale: jax.Array) -> jax.Array:
  """The Laplace distribution's mass below an edge."""
  distance = (edge - location) * jnp.exp(-jnp.clip(log_scale, -MAX_LOG_SCALE, MAX_LOG_SCALE))
  tail = 0.5 * jnp.exp(-jnp.abs(distance))
  return jnp.where(distance < 0, tail, 1 - tail)


def cumulative(frequencies: np.ndarray) -> np.ndarray:
  """Running sums int32 [..., V + 1] from 0 to 2^PRECISION.

  Raises:
    ValueError: the frequencies are not those of a distribution, which the model's NaN leads to.
  """
  sums = np.zeros((*frequencies.shape[:-1], frequencies.shape[-1] + 1), np.int32)
  np.cumsum(frequencies, axis=-1, out=sums[..., 1:])
  if (sums[..., -1] != TOTAL).any() or (frequencies < 1).any():
    raise ValueError('The model gives no probabilities (NaN) for some token: nothing can be coded with it.')
  return sums
