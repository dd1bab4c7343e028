"""Continue text prompts with a trained sequence model."""

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
  """Sample `num_samples` full sequences that begin with each prompt.

  Sample i of a prompt uses the key fold_in(key(seed), i), whatever its batch. If a prompt is as long as a sequence or
  longer, only its last model.length // 2 tokens are used.

  Args:
    model: any sequence model.
    params: the model's parameters, on the mesh.
    prompts: token ids [P] of each prompt; P may be 0.
    num_samples: the number of samples per prompt.
    mesh: the device mesh that splits the batch.
    seed: the seed of the noise.
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: how many of the likeliest tokens to sample from; 0 for all.
    batch_size: sequences per batch.
    top_p: the share of the probability to sample from; 1 for all.

  Returns:
    For each prompt a list of `num_samples` arrays of token ids, int32 [model.length].

  Raises:
    ValueError: the logits are not finite.
  """
  size = sharding.rounded_batch(min(batch_size, num_samples), mesh)
  draw = functools.partial(_draw, model, temperature=temperature, top_k=top_k, top_p=top_p if top_p < 1 else None)
  run = jax.jit(draw, out_shardings=sharding.replicated(mesh))
  samples_by_prompt = []
  for prompt in prompts:
    context = prompt if len(prompt) < model.length else prompt[-max(model.length // 2, 1) :]
    samples: list[np.ndarray] = []
    for begin in range(0, num_samples, size):
      index = begin + np.arange(size)
      prefix = np.broadcast_to(np.asarray(context, np.int32), (size, len(context)))
      with sharding.use_mesh(mesh):
        tokens, not_finite = jax.device_get(run(params, *sharding.from_whole((prefix, index), mesh), seed))
      check_finite(not_finite, model.length, lambda row, at: f'token {at} of text {index[row]}')  # noqa: B023
      samples += list(tokens)
    samples_by_prompt.append(samples[:num_samples])
  return samples_by_prompt


def _draw(
  model: SequenceModel, params: Any, prefix: jax.Array, index: jax.Array, seed: jax.Array, **settings: Any
) -> tuple[jax.Array, jax.Array]:
  return decode(model, params, jnp.asarray(prefix), row_keys(seed, index), **settings)
