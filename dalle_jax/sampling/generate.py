"""From prompts to images with a trained model."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.config import SamplingConfig
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.stream import PAD, StreamModel
from dalle_jax.sampling.decode import decode, row_keys


class Sampler:
  """Draws images in batches of one fixed shape, so that everything compiles once.

  Image number i is drawn with the key fold_in(key(seed), i), whatever the batch it falls into.
  """

  def __init__(self, model: Prior | StreamModel, dvae: Dvae, mesh: Mesh, settings: SamplingConfig, part: str = 'prior'):
    """`part` is the collection of parameters that the model has."""
    self.mesh = mesh
    divisor = sharding.batch_divisor(mesh)
    # A batch is rounded up to what the devices divide; rows too many are computed and dropped.
    self.batch_size = -(-settings.batch_size // divisor) * divisor
    if settings.top_k > model.image_vocab_size:
      raise ValueError(
        f'top_k {settings.top_k} is more than the {model.image_vocab_size} image tokens there are; '
        'give --top_k (config.sampling.top_k) at most that, or 0 for all.'
      )
    draw = functools.partial(_draw, model, dvae, part, temperature=settings.temperature, top_k=settings.top_k)
    self._draw = jax.jit(draw, out_shardings=sharding.replicated(mesh))

  def __call__(
    self, params: dict[str, Any], text: np.ndarray, seed: int, progress: Callable[[int, int], None] | None = None
  ) -> np.ndarray:
    """Draws one image per row, uint8 [N, H, W, 3]; arguments as for `draw`."""
    return self.draw(params, text, seed, progress)[1]

  def draw(
    self, params: dict[str, Any], text: np.ndarray, seed: int, progress: Callable[[int, int], None] | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image per row.

    Args:
      params: {'dvae', part} on the mesh.
      text: token ids [N, text_length - 1]; [N, 0] for a model of images alone.
      seed: of the noise.
      progress: called with (images done, N) after each batch.

    Returns:
      Codes int32 [N, h, w] and images uint8 [N, H, W, 3].
    """
    batches = []
    for begin, rows in _batches(text, self.batch_size):
      index = np.arange(begin, begin + self.batch_size)
      with sharding.use_mesh(self.mesh):
        drawn = self._draw(params, *sharding.from_whole((rows, index), self.mesh), seed)
      batches.append(jax.device_get(drawn))
      if progress:
        progress(min(begin + self.batch_size, len(text)), len(text))
    codes, images = (np.concatenate(parts)[: len(text)] for parts in zip(*batches, strict=True))
    return codes, images


def _batches(text: np.ndarray, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
  """Rows in batches of exactly `batch_size`, the last filled up with pads, each with the number of its first row."""
  for begin in range(0, len(text), batch_size):
    rows = text[begin : begin + batch_size]
    fill = ((0, batch_size - len(rows)), (0, 0))
    yield begin, np.pad(rows, fill, constant_values=PAD)


def _draw(
  model: Prior | StreamModel, dvae: Dvae, part: str, params: Any, text: jax.Array, index: jax.Array, seed: jax.Array, *,
  temperature: float, top_k: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
  """Codes [B, h, w] and uint8 images [B, H, W, 3] for text ids [B, text_length - 1] and image numbers [B]."""
  keys = row_keys(seed, index)
  tokens = decode(model, params[part], model.prefix(text), keys, temperature=temperature, top_k=top_k)
  grid = model.codes(tokens).reshape(-1, model.grid_size, model.grid_size)
  images = dvae.apply({'params': params['dvae']}, grid, method='decode')
  return grid, jnp.round(images).astype(jnp.uint8)


def encode_prompts(tokenizer: Any, prompts: Sequence[str], text_length: int, truncate: bool = False) -> np.ndarray:
  """Token ids int32 [N, text_length - 1] of prompts.

  Raises:
    ValueError: a prompt is empty, or too long and `truncate` is not set.
  """
  return np.stack([tokenizer.encode_padded(prompt, text_length - 1, truncate=truncate) for prompt in prompts])
