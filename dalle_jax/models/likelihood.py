"""Likelihoods of pixels: the paper's logit-Laplace distribution (appendix A.3) and a normal distribution.

Training minimises densities of mapped pixels. A density is no probability: if the scale b is small, the density times
the width of a pixel's bin exceeds 1. Figures in bits use `pixel_nll`, which integrates the density over the bin.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 0.1  # keeps mapped pixels away from 0 and 1, where the logit is infinite
MAX_LOG_SCALE = 20.0  # probabilities of bins clip ln b to +-this, far beyond any scale that matters for 8-bit pixels


def _bin_edges() -> np.ndarray:
  mapped = np.asarray((1 - 2 * EPSILON) / 255 * (np.arange(255) + 0.5) + EPSILON)
  return np.concatenate([[-np.inf], np.log(mapped) - np.log1p(-mapped), [np.inf]])


# The bounds of the bins of all pixel values, as logits of mapped pixels, float64 [257]. The bins of 0 and 255 extend to
# the ends of the distribution, so the probabilities of the 256 bins sum to 1.
BIN_EDGES = _bin_edges()


def map_pixels(image: jax.Array) -> jax.Array:
  """Map pixels [..., 3], uint8 or float in [0, 255], to float32 in [0.1, 0.9] (phi in the paper)."""
  return (1 - 2 * EPSILON) / 255 * image.astype(jnp.float32) + EPSILON


def unmap_pixels(x: jax.Array) -> jax.Array:
  """The inverse of `map_pixels`: values in (0, 1) to float32, clipped to [0, 255]."""
  return jnp.clip((x - EPSILON) / (1 - 2 * EPSILON), 0, 1) * 255


def logit_laplace_nll(x: jax.Array, stats: jax.Array, min_log_scale: float) -> jax.Array:
  """Negative log-likelihood of a logit-Laplace distribution, in nats per dimension.

  Args:
    x: mapped pixels [..., C] in (0, 1).
    stats: [..., 2C]: the location mu, then ln b, where b is the scale.
    min_log_scale: lower bound of ln b. The paper has no lower bound. Without one, a constant background drives ln b
      towards -infinity and the gradient towards infinity. 8-bit pixels resolve no detail below about 0.01 in logit
      space.

  Returns:
    -ln f(x | mu, b) = ln 2b + ln x(1 - x) + |logit x - mu| / b, shape [..., C].
  """
  mu, log_scale = jnp.split(stats.astype(jnp.float32), 2, axis=-1)
  log_scale = jnp.maximum(log_scale, min_log_scale)
  logit = jnp.log(x) - jnp.log1p(-x)
  return jnp.log(2.0) + log_scale + jnp.log(x * (1 - x)) + jnp.abs(logit - mu) * jnp.exp(-log_scale)


def pixel_nll(pixel: jax.Array, stats: jax.Array, min_log_scale: float) -> jax.Array:
  """-ln of the probability of 8-bit pixel values under the logit-Laplace distribution, in nats per value.

  The probability is the density of the mapped pixel, integrated over the value's bin (see `BIN_EDGES`). It is at most
  1 at any scale. We subtract cumulative distributions in the log domain, so float32 gives exact digits where the
  probability underflows, e.g. 200 scales from the location.

  Args:
    pixel: uint8 [..., C].
    stats: [..., 2C], as in `logit_laplace_nll`.
    min_log_scale: lower bound of ln b, as in `logit_laplace_nll`.

  Returns:
    float32 [..., C], at least 0.
  """
  mu, log_scale = jnp.split(stats.astype(jnp.float32), 2, axis=-1)
  log_scale = jnp.clip(jnp.maximum(log_scale, min_log_scale), -MAX_LOG_SCALE, MAX_LOG_SCALE)
  index = pixel.astype(jnp.int32)
  # Distances from the location in units of b. The outermost edges are replaced by finite ones: an infinite value that
  # `where` discards would still make the gradient NaN.
  edges = BIN_EDGES.copy()
  edges[0], edges[-1] = edges[1] - 1, edges[-2] + 1
  per_scale = jnp.exp(-log_scale)
  lower = (jnp.asarray(edges, jnp.float32)[index] - mu) * per_scale
  upper = (jnp.asarray(edges, jnp.float32)[index + 1] - mu) * per_scale
  width = jnp.asarray(np.diff(edges), jnp.float32)[index] * per_scale  # more exact than upper - lower
  # A bin on one side of the location: the larger tail, times the share of it that the bin holds.
  one_side = -jnp.log(2.0) - jnp.maximum(lower, -upper) + _log1mexp(width)
  # A bin around the location has all but two tails.
  inside = (lower < 0) & (upper > 0)
  tails = jnp.expm1(jnp.where(inside, lower, -1.0)) + jnp.expm1(jnp.where(inside, -upper, -1.0))
  log_prob = jnp.where(inside, jnp.log(-0.5 * tails), one_side)
  log_prob = jnp.where(index == 0, _log_tail(upper), jnp.where(index == 255, _log_tail(-lower), log_prob))
  return jnp.maximum(-log_prob, 0.0)


def _log1mexp(x: jax.Array) -> jax.Array:
  """ln(1 - e^-x) for x > 0."""
  small = x < 0.7  # near ln 2, where both forms are equally exact
  return jnp.where(
    small, jnp.log(-jnp.expm1(-jnp.where(small, x, 0.7))), jnp.log1p(-jnp.exp(-jnp.where(small, 0.7, x)))
  )


def _log_tail(distance: jax.Array) -> jax.Array:
  """ln of the mass of a Laplace distribution below `distance`, in units of its scale from its location."""
  below = distance < 0
  upper_part = jnp.log1p(-0.5 * jnp.exp(-jnp.where(below, 1.0, distance)))
  return jnp.where(below, jnp.where(below, distance, -1.0) - jnp.log(2.0), upper_part)


def normal_nll(x: jax.Array, stats: jax.Array, scale: float) -> jax.Array:
  """Negative log-likelihood of a normal distribution around the reconstruction, in nats per dimension.

  The gradient pulls towards the mean of the pixels that share a code, so small objects count from the start. The
  gradient of a Laplace distribution pulls towards their median. If most of the pixels are background, the median is
  background, and training ignores small objects for a long time.

  Args:
    x: mapped pixels [..., C] in (0, 1).
    stats: [..., 2C]: the location mu, then ln b. ln b is ignored.
    scale: standard deviation of the distribution, in units of mapped pixels.

  Returns:
    Shape [..., C].
  """
  mu, _ = jnp.split(stats.astype(jnp.float32), 2, axis=-1)
  error = (x - jax.nn.sigmoid(mu)) / scale
  return 0.5 * error**2 + jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi)


def reconstruction(stats: jax.Array) -> jax.Array:
  """Decoder statistics [..., 2C] to the reconstructed image, float32 [..., C] in [0, 255] (appendix A.3).

  The reconstruction depends only on the location mu; ln b is ignored.
  """
  mu, _ = jnp.split(stats.astype(jnp.float32), 2, axis=-1)
  return unmap_pixels(jax.nn.sigmoid(mu))


def psnr(mean_squared_error: Any, xp: Any = jnp, least: float = 1e-10) -> Any:
  """Peak signal-to-noise ratio in dB of values in [0, 1]; an error of 0 counts as `least`, by default 100 dB.

  Args:
    mean_squared_error: An array or a number.
    xp: The array library to compute with: `jax.numpy`, or `numpy` for float64.
    least: A smaller error counts as this.
  """
  return -10 * xp.log10(xp.maximum(mean_squared_error, least))
