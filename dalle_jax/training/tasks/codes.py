"""Image codes of the frozen dVAE, which the tasks of stage 2 compute inside their step (section 2.2)."""

from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.config import Config
from dalle_jax.factory import make_dvae


def init_dvae(config: Config, key: jax.Array) -> Any:
  """Parameters of the collection 'dvae', boxed, in whose place the trained ones are put."""
  size = config.data.image_size
  return make_dvae(config.dvae).init(key, jnp.zeros((1, size, size, 3), jnp.uint8))['params']


def encode(config: Config, params: Any, image: jax.Array) -> jax.Array:
  """Images [B, H, W, 3] to codes [B, image_length]: the encoder's argmax, without noise.

  Args:
    config: of the experiment.
    params: with the collection 'dvae'.
    image: uint8.
  """
  codes = make_dvae(config.dvae).apply({'params': params['dvae']}, image, method='encode')
  return jax.lax.stop_gradient(codes.reshape(image.shape[0], -1))
