"""From prompts to text with a trained sequence model."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.models.sequence import SequenceModel
from dalle_jax.sampling.decode import decode, row_keys


def continue_text(
  model: SequenceModel,
  params: Any,
  prompts: Sequence[np.ndarray],
  num_samples: int,
  mesh: Mesh,
  *,
  seed: int,
  temperature: float,
  top_k: int,
  batch_size: int,
) -> list[list[np.ndarray]]:
  """Whole sequences that begin with each prompt: for each, `num_samples` arrays of ids [model.length].

  Sample i of prompt j draws with the key fold_in(key(seed), j * num_samples + i), whatever the batch it falls into.
  Of a prompt as long as a sequence or longer the end is kept, half a sequence of it.

  Args:
    model: any sequence model.
    params: its parameters, on the mesh.
    prompts: ids of each, possibly none.
    num_samples: of each prompt.
    mesh: the batch is split over it.
    seed: of the noise.
    temperature: 0 takes the likeliest tokens.
    top_k: tokens to choose among; 0 for all.
    batch_size: sequences at a time.
  """
  divisor = sharding.batch_divisor(mesh)
  size = -(-min(batch_size, num_samples) // divisor) * divisor
  draw = functools.partial(_draw, model, temperature=temperature, top_k=top_k)
  run = jax.jit(draw, out_shardings=sharding.replicated(mesh))
  drawn = []
  for number, prompt in enumerate(prompts):
    kept = prompt if len(prompt) < model.length else prompt[-max(model.length // 2, 1) :]
    samples: list[np.ndarray] = []
    for begin in range(0, num_samples, size):
      index = number * num_samples + begin + np.arange(size)
      prefix = np.broadcast_to(np.asarray(kept, np.int32), (size, len(kept)))
      with sharding.use_mesh(mesh):
        samples += list(jax.device_get(run(params, *sharding.from_whole((prefix, index), mesh), seed)))
    drawn.append(samples[:num_samples])
  return drawn


def _draw(
  model: SequenceModel, params: Any, prefix: jax.Array, index: jax.Array, seed: jax.Array, *, temperature: float,
  top_k: int,
) -> jax.Array:  # fmt: skip
  keys = row_keys(seed, index)
  return decode(model, params, jnp.asarray(prefix), keys, temperature=temperature, top_k=top_k)
