"""Inception-v3 features of images, computed on the devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.evaluation.row_batches import in_batches
from dalle_jax.models.inception import Inception, prepare


class InceptionFeatures:
  """Maps images uint8 [N, H, W, 3] of any size to features float32 [N, 2048]."""

  def __init__(self, params: Any, mesh: Mesh, batch_size: int):
    """Put the network on the devices.

    Args:
      params: the network's parameters, as `importing.inception_weights` reads them.
      mesh: the device mesh that splits the batches.
      batch_size: images per batch.
    """
    self._params = jax.device_put(params, sharding.replicated(mesh))
    self._mesh, self._batch_size = mesh, batch_size

  def __call__(self, images: np.ndarray) -> np.ndarray:
    return in_batches(_features, self._params, images, self._mesh, self._batch_size)


def _features(params: Any, images: jax.Array) -> jax.Array:
  return Inception().apply({'params': params}, prepare(images))
