"""Count the parameters of a task and the FLOPs of its matrix products, from the traced program."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dalle_jax import hardware
from dalle_jax.config import Config
from dalle_jax.training.tasks import Task, boxed_params
from dalle_jax.training.tasks.codes import encode

# Modules that hold token and position embeddings and output matrices.
EMBEDDINGS = ('embeddings', 'vocabulary')


def matmul_flops(jaxpr: Any) -> int:
  """FLOPs of a program's matrix products and convolutions, counting a loop body once per iteration.

  A multiplication and an addition count as two. We do not use XLA's cost analysis, which counts a loop body once,
  whatever its trip count. Convolutions include the zeros of their padding and dilation.
  """
  flops = 0
  for equation in jaxpr.eqns:
    flops += _equation_flops(equation)
    inner = [getattr(value, 'jaxpr', value) for value in equation.params.values()]
    repeats = equation.params['length'] if equation.primitive.name == 'scan' else 1
    flops += repeats * sum(matmul_flops(program) for program in inner if hasattr(program, 'eqns'))
  return flops


def _equation_flops(equation: Any) -> int:
  """FLOPs of one equation, without the programs inside it."""
  if equation.primitive.name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
  if equation.primitive.name == 'conv_general_dilated':
    kernel = equation.invars[1].aval
    outputs = kernel.shape[equation.params['dimension_numbers'].rhs_spec[0]]
    return 2 * equation.outvars[0].aval.size * kernel.size // outputs
  return 0


def abstract_params(task: Task) -> dict[str, Any]:
  """Shapes of all collections, unboxed, without computing anything."""
  return jax.eval_shape(nn.unbox, boxed_params(task))


def count_params(task: Task) -> tuple[int, int]:
  """Count the trained parameters: in total, and without embeddings.

  Embeddings here are the token and position tables and the output matrices over the vocabulary. Kaplan et al. 2020,
  section 2.1, leave them out of N.
  """
  params = abstract_params(task)
  trained = {name: params[name] for name in task.trainable}
  total = outside = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
    total += leaf.size
    if not {getattr(entry, 'key', None) for entry in path} & set(EMBEDDINGS):
      outside += leaf.size
  return total, outside


def step_flops(task: Task, batch: dict[str, jax.ShapeDtypeStruct], recomputed: bool = False) -> int:
  """FLOPs of the matrix products in one step: the loss and its gradient.

  A frozen dVAE that encodes the images is not counted.

  Args:
    task: the task.
    batch: shapes of the batch.
    recomputed: whether to count what rematerialisation computes a second time.
  """
  task = task if recomputed else _without_remat(task)
  params = abstract_params(task)
  trained = {name: params[name] for name in task.trainable}
  frozen = {name: params[name] for name in params if name not in task.trainable}

  def loss(trained: Any, frozen: Any, batch: Any) -> tuple[jax.Array, dict]:
    return task.loss({**frozen, **trained}, batch, jax.random.key(0), jnp.int32(0))

  flops = matmul_flops(jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))(trained, frozen, batch).jaxpr)
  if 'dvae' in frozen and 'image' in batch:
    config = _config_of(task)
    assert config is not None, 'a task with a frozen dVAE has a configuration'
    encode_images = functools.partial(encode, config)
    flops -= matmul_flops(jax.make_jaxpr(encode_images)(params, batch['image']).jaxpr)
  return flops


def _config_of(task: Task) -> Config | None:
  config = getattr(task, 'config', None)
  return config if isinstance(config, Config) else None


def _without_remat(task: Task) -> Task:
  config = _config_of(task)
  if config is None:
    return task
  assert dataclasses.is_dataclass(task)
  groups = {name: dataclasses.replace(getattr(config, name), remat='none') for name in ('prior', 'model')}
  return dataclasses.replace(task, config=dataclasses.replace(config, **groups))


def utilisation_per_rate(task: Task, batch: Any, mesh: jax.sharding.Mesh) -> float | None:
  """Model-FLOPs utilisation at one step per second; None if the peak FLOP/s of the devices is unknown."""
  chip = hardware.chip(mesh.devices.flat[0].device_kind)
  if chip is None:
    return None
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  return step_flops(task, shapes) / (chip.peak_flops * mesh.size)
