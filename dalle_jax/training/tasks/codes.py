"""Image codes from the frozen dVAE, which stage 2 computes inside its training step (section 2.2)."""

from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.config import Config
from dalle_jax.factory import make_dvae


def init_dvae(config: Config, key: jax.Array) -> Any:
  """Boxed parameters for the collection 'dvae', a placeholder for those of the trained dVAE."""
  size = config.data.image_size
  return make_dvae(config.dvae).init(key, jnp.zeros((1, size, size, 3), jnp.uint8))['params']


def codes_of(config: Config, params: Any, batch: dict) -> jax.Array:
  """The image codes of a batch, [B, image_length]: encoded from 'image', taken from 'codes', or both.

  Args:
    config: the experiment's configuration.
    params: parameters that include the collection 'dvae'.
    batch: 'image' uint8 [B, H, W, 3], or 'codes' int32 [B, image_length], or both. With both, a row whose codes are
      negative is encoded.
  """
  if 'image' not in batch:
    return batch['codes']
  codes = encode(config, params, batch['image'])
  return jnp.where(batch['codes'] < 0, codes, batch['codes']) if 'codes' in batch else codes


def encode(config: Config, params: Any, image: jax.Array) -> jax.Array:
  """Encode images [B, H, W, 3] to codes [B, image_length]: the argmax of the encoder's logits, without noise.

  Args:
    config: the experiment's configuration.
    params: parameters that include the collection 'dvae'.
    image: uint8 [B, H, W, 3].
  """
  codes = make_dvae(config.dvae).apply({'params': params['dvae']}, image, method='encode')
  return jax.lax.stop_gradient(codes.reshape(image.shape[0], -1))
