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
from dalle_jax.sampling.decode import check_finite, decode, row_keys


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
  top_p: float = 1.0,
) -> list[list[np.ndarray]]:
  """Whole sequences that begin with each prompt: for each, `num_samples` arrays of ids [model.length].

  Sample i of a prompt draws with the key fold_in(key(seed), i), whatever the batch it falls into.
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
    top_p: share of the probability to choose among; 1 for all.

  Raises:
    ValueError: the logits are not finite.
  """
  size = sharding.rounded_batch(min(batch_size, num_samples), mesh)
  draw = functools.partial(_draw, model, temperature=temperature, top_k=top_k, top_p=top_p if top_p < 1 else None)
  run = jax.jit(draw, out_shardings=sharding.replicated(mesh))
  drawn = []
  for prompt in prompts:
    kept = prompt if len(prompt) < model.length else prompt[-max(model.length // 2, 1) :]
    samples: list[np.ndarray] = []
    for begin in range(0, num_samples, size):
      index = begin + np.arange(size)
      prefix = np.broadcast_to(np.asarray(kept, np.int32), (size, len(kept)))
      with sharding.use_mesh(mesh):
        tokens, not_finite = jax.device_get(run(params, *sharding.from_whole((prefix, index), mesh), seed))
      check_finite(not_finite, model.length, lambda row, at: f'token {at} of text {index[row]}')  # noqa: B023
      samples += list(tokens)
    drawn.append(samples[:num_samples])
  return drawn


def _draw(
  model: SequenceModel, params: Any, prefix: jax.Array, index: jax.Array, seed: jax.Array, **settings: Any
) -> tuple[jax.Array, jax.Array]:
  return decode(model, params, jnp.asarray(prefix), row_keys(seed, index), **settings)
