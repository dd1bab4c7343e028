"""The logit-Laplace likelihood of pixels (appendix A.3)."""

import jax
import jax.numpy as jnp

EPSILON = 0.1  # keeps mapped pixels away from 0 and 1, where the logit is infinite


def map_pixels(image: jax.Array) -> jax.Array:
  """Pixels [..., 3], uint8 or float in [0, 255], to float32 in [0.1, 0.9] (the paper's phi)."""
  return (1 - 2 * EPSILON) / 255 * image.astype(jnp.float32) + EPSILON


def unmap_pixels(x: jax.Array) -> jax.Array:
  """The inverse of `map_pixels`, clipped: values in (0, 1) to float32 in [0, 255]."""
  return jnp.clip((x - EPSILON) / (1 - 2 * EPSILON), 0, 1) * 255


def logit_laplace_nll(x: jax.Array, stats: jax.Array, min_log_scale: float) -> jax.Array:
  """Negative log-likelihood in nats, per dimension.

  Args:
    x: mapped pixels [..., C] in (0, 1).
    stats: [..., 2C]: location mu, then ln b.
    min_log_scale: floor of ln b. The paper states none; pixels rounded to 8 bits hold no finer detail than about
      0.01 in logit space, and without a floor a constant background drives ln b, and the gradient, without bound.

  Returns:
    -ln f(x | mu, b) = ln 2b + ln x(1 - x) + |logit x - mu| / b, shape [..., C].
  """
  mu, log_scale = jnp.split(stats.astype(jnp.float32), 2, axis=-1)
  log_scale = jnp.maximum(log_scale, min_log_scale)
  logit = jnp.log(x) - jnp.log1p(-x)
  return jnp.log(2.0) + log_scale + jnp.log(x * (1 - x)) + jnp.abs(logit - mu) * jnp.exp(-log_scale)


def normal_nll(x: jax.Array, stats: jax.Array, scale: float) -> jax.Array:
  """Negative log-likelihood in nats, per dimension, of a normal around the reconstruction.

  Its gradient pulls towards the mean. That of a Laplace distribution pulls towards the median, which for a code that
  stands mostly for background is the background, so that small objects are long ignored.

  Args:
    x: mapped pixels [..., C] in (0, 1).
    stats: [..., 2C], of which the location is read.
    scale: standard deviation on mapped pixels.
  """
  mu, _ = jnp.split(stats.astype(jnp.float32), 2, axis=-1)
  error = (x - jax.nn.sigmoid(mu)) / scale
  return 0.5 * error**2 + jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi)


def reconstruction(stats: jax.Array) -> jax.Array:
  """The image [..., C] in [0, 255] that decoder statistics [..., 2C] stand for; ln b is ignored (appendix A.3)."""
  mu, _ = jnp.split(stats.astype(jnp.float32), 2, axis=-1)
  return unmap_pixels(jax.nn.sigmoid(mu))
