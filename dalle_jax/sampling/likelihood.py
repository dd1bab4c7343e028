"""How likely images are to a model of streams."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.models.prior import Prior
from dalle_jax.models.sequence import token_nll
from dalle_jax.models.stream import StreamModel


def image_nats(
  model: Prior | StreamModel,
  params: Any,
  text: np.ndarray,
  codes: np.ndarray,
  mesh: Mesh,
  batch_size: int,
  progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
  """-ln p of every code given its caption and the codes before it, in nats, float32 [N, h, w].

  Args:
    model: of streams.
    params: its parameters, on the mesh.
    text: ids [N, text_length - 1].
    codes: int32 [N, h, w].
    mesh: the batch is split over it.
    batch_size: images at a time, rounded up to what the devices divide.
    progress: called with (images done, N) after each batch.
  """
  divisor = sharding.batch_divisor(mesh)
  size = -(-min(batch_size, len(text)) // divisor) * divisor
  run = _score(model, mesh)
  nats = []
  for begin in range(0, len(text), size):
    take = np.minimum(np.arange(begin, begin + size), len(text) - 1)
    with sharding.use_mesh(mesh):
      nats.append(jax.device_get(run(params, *sharding.from_whole((text[take], codes[take]), mesh))))
    if progress:
      progress(min(begin + size, len(text)), len(text))
  return np.concatenate(nats)[: len(text)].reshape(codes.shape)


@functools.lru_cache(maxsize=8)
def _score(model: Prior | StreamModel, mesh: Mesh) -> Callable:
  def score(params: Any, text: jax.Array, codes: jax.Array) -> jax.Array:
    tokens = model.stream(text, codes.reshape(len(codes), -1))
    return token_nll(model.logits(params, tokens), tokens)[:, model.text_length :]

  return jax.jit(score, out_shardings=sharding.replicated(mesh))
