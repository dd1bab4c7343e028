"""Conversion of a model's outputs to integer frequencies. Encoder and decoder must compute exactly the same ones.

All floating-point work runs in compiled programs with fixed input shapes, which encoder and decoder share. Their
results are integers. All later steps use integer arithmetic and are exact on every machine.
"""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.compression.range_coder import PRECISION
from dalle_jax.models import likelihood
from dalle_jax.models.likelihood import MAX_LOG_SCALE

TOTAL = 1 << PRECISION


@contextlib.contextmanager
def exactly() -> Iterator[None]:
  """Context manager for matrix products in full precision, regardless of `JAX_DEFAULT_MATMUL_PRECISION`.

  A compressed file depends on the precision, so the environment must not choose it.
  """
  with jax.default_matmul_precision('highest'):
    yield


def from_probabilities(probs: jax.Array) -> jax.Array:
  """Convert probabilities to positive integers that add up to 2^PRECISION.

  Args:
    probs: float32 [..., V] with the sum 1, within rounding, over the last axis.

  Returns:
    int32 [..., V]. The largest frequency absorbs the rounding error. If `probs` has NaN, some frequencies are 0 or
    negative, and `cumulative` raises an error.
  """
  size = probs.shape[-1]
  frequencies = jnp.floor(probs * (TOTAL - size)).astype(jnp.int32) + 1
  rest = TOTAL - jnp.sum(frequencies, axis=-1)
  largest = jax.nn.one_hot(jnp.argmax(frequencies, axis=-1), size, dtype=jnp.int32)
  return jnp.where(jnp.isnan(probs), 0, frequencies + largest * rest[..., None])


def of_logits(logits: jax.Array) -> jax.Array:
  """Convert logits [..., V] to frequencies int32 [..., V]."""
  return from_probabilities(jax.nn.softmax(logits.astype(jnp.float32), axis=-1))


def of_pixels(location: jax.Array, log_scale: jax.Array) -> jax.Array:
  """Frequencies of 8-bit pixel values under the logit-Laplace distribution (appendix A.3).

  The probability of a value is the density of the mapped pixel, integrated over the value's bin. The bins of 0 and 255
  extend to the ends of the distribution.

  Args:
    location: float32 [...], mu of the logit of the mapped pixel.
    log_scale: float32 [...], ln b; clipped to +-MAX_LOG_SCALE.

  Returns:
    int32 [..., 256].
  """
  edges = _EDGES.reshape((1,) * location.ndim + (-1,))
  mass_below = _mass_below(edges, location[..., None], log_scale[..., None])
  return from_probabilities(jnp.maximum(jnp.diff(mass_below, axis=-1), 0))


def pixel_nats(location: jax.Array, log_scale: jax.Array, pixel: jax.Array) -> jax.Array:
  """-ln p of pixel values under the distributions of `of_pixels`, at most ln 2^PRECISION.

  Args:
    location: float32 [...], as in `of_pixels`.
    log_scale: float32 [...], as in `of_pixels`.
    pixel: uint8 [...].

  Returns:
    float32 [...], in nats.
  """
  edges = jnp.asarray(_EDGES)
  index = pixel.astype(jnp.int32)
  lower, upper = (_mass_below(edges[i], location, log_scale) for i in (index, index + 1))
  return -jnp.log(jnp.maximum(upper - lower, 1 / TOTAL))


_EDGES = likelihood.BIN_EDGES.astype(np.float32)


def _mass_below(edge: jax.Array | np.ndarray, location: jax.Array, log_scale: jax.Array) -> jax.Array:
  """The cumulative distribution function of the Laplace distribution at an edge."""
  distance = (edge - location) * jnp.exp(-jnp.clip(log_scale, -MAX_LOG_SCALE, MAX_LOG_SCALE))
  tail = 0.5 * jnp.exp(-jnp.abs(distance))
  return jnp.where(distance < 0, tail, 1 - tail)


def cumulative(frequencies: np.ndarray) -> np.ndarray:
  """Cumulative sums int32 [..., V + 1], from 0 to 2^PRECISION, of frequencies int32 [..., V].

  Raises:
    ValueError: a frequency is not positive or the sum is not 2^PRECISION, because the model's outputs have NaN.
  """
  sums = np.zeros((*frequencies.shape[:-1], frequencies.shape[-1] + 1), np.int32)
  np.cumsum(frequencies, axis=-1, out=sums[..., 1:])
  if (sums[..., -1] != TOTAL).any() or (frequencies < 1).any():
    raise ValueError(
      'The model gives no probabilities for some token, because its outputs have NaN. It cannot compress anything; use '
      'a model whose parameters are finite (--model).'
    )
  return sums
