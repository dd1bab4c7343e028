"""Likelihoods of pixels: the paper's logit-Laplace distribution (appendix A.3) and a normal distribution."""

from typing import Any

import jax
import jax.numpy as jnp

EPSILON = 0.1  # keeps mapped pixels away from 0 and 1, where the logit is infinite


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
