"""The cost of mesh axes that do not divide the model's dimensions: unsplit parameters and wasted heads.

Such meshes give correct results, but need more memory and time than necessary. XLA pads the heads to a multiple of the
axis size. A parameter is replicated along an axis that divides none of the dimensions which it should split.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from dalle_jax.config import Config, TrainingConfig
from dalle_jax.hosts import say
from dalle_jax.mesh import divisors, heads_and_widths
from dalle_jax.sharding import axes_of, param_shardings
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.stage_tasks import make_task, stages_of, training_of
from dalle_jax.training.tasks import Task, boxed_params

# Costs below either limit are not reported.
SMALLEST_SHARE = 1e-3  # replicated bytes as a share of the state's bytes
SMALLEST_BYTES = 2**20  # replicated bytes per device


def lines(task: Task, training: TrainingConfig, config: Config, mesh: Mesh) -> list[str]:
  """Describe the cost of each mesh axis that does not divide the model, one paragraph per axis.

  Args:
    task: the task to train; only its shapes are computed.
    training: determines which moments and averages are kept.
    config: the experiment's configuration, whose heads and widths the text names.
    mesh: a device mesh or an abstract mesh.
  """
  if mesh.shape['fsdp'] == mesh.shape['tensor'] == 1:
    return []
  params, moments = _abstract(task, training)
  descriptions = []
  for axis, describe in (('fsdp', _describe_fsdp), ('tensor', _describe_tensor)):
    cost = _axis_cost(params, moments, mesh, axis)
    if cost.replicated_bytes >= max(SMALLEST_BYTES, SMALLEST_SHARE * cost.total_bytes):
      descriptions.append(describe(cost, config, mesh))
  return descriptions


@dataclasses.dataclass(frozen=True)
class _AxisCost:
  """The parameters that a mesh axis should split, according to their axis names, but does not divide."""

  sizes: tuple[int, ...]  # sizes of the dimensions that the axis does not divide, those with most parameters first
  parameters: int  # number of these parameters
  bytes_on_device: int  # bytes per device of these parameters, their moments and averages
  replicated_bytes: int  # bytes per device that splitting them would have saved
  total_bytes: int  # bytes of the whole state over all devices, without replication

  @property
  def memory(self) -> str:
    """A sentence on the memory that these parameters cost."""
    return (
      f'This leaves {self.parameters:,} parameters unsplit, so every device needs {_size(self.replicated_bytes)} more '
      f'memory ({_size(self.bytes_on_device)} instead of {_size(self.bytes_on_device - self.replicated_bytes)} for '
      'these parameters, their moments and averages).'
    )


def _describe_fsdp(cost: _AxisCost, config: Config, mesh: Mesh) -> str:
  keys = {width: f' (config.{key})' for _, _, key, width in heads_and_widths(config)}
  size, axis = cost.sizes[0], mesh.shape['fsdp']
  allowed = [factor for factor in divisors(size) if mesh.size % factor == 0]
  return (
    f'mesh: config.mesh.fsdp {axis} does not divide {size}{keys.get(size, "")}. {cost.memory} '
    f'Sizes that divide both {size} and the {mesh.size} devices: {_listed(allowed)}. '
    'Use the remaining devices for config.mesh.data.'
  )


def _describe_tensor(cost: _AxisCost, config: Config, mesh: Mesh) -> str:
  axis = mesh.shape['tensor']
  for key, heads, _, _ in heads_and_widths(config):
    if heads in cost.sizes:
      computed = -(-heads // axis) * axis
      return (
        f'mesh: config.mesh.tensor {axis} does not divide {heads} heads (config.{key}). {cost.memory} '
        f'XLA computes {computed} heads instead of {heads} ({computed / heads - 1:.1%} more). '
        f'Sizes that divide {heads}: {_listed(divisors(heads))}.'
      )
  size, sizes = cost.sizes[0], ' and '.join(map(str, cost.sizes[:3]))
  allowed = [factor for factor in divisors(size) if factor <= mesh.size]
  return (
    f'mesh: config.mesh.tensor {axis} does not divide {sizes}. {cost.memory} '
    f'Sizes that divide {size}: {_listed(allowed)}.'
  )


def _abstract(task: Task, training: TrainingConfig) -> tuple[Any, Any]:
  """Shapes of the parameters, and of their moments and averages, boxed with their axis names."""

  params = boxed_params(task)
  trained = {name: params[name] for name in task.trainable}
  averaged = {name: params[name] for name in (*task.trainable, *task.updated)} if training.ema_decay else None
  return params, (jax.eval_shape(make_optimizer(training).init, trained), averaged)


def _axis_cost(params: Any, moments: Any, mesh: Mesh, axis: str) -> _AxisCost:
  by_size: dict[int, int] = {}
  on_device = 0
  for box, sharding in _boxes(params, mesh):
    if (size := _undivided_size(box, sharding, mesh, axis)) is not None:
      by_size[size] = by_size.get(size, 0) + math.prod(box.value.shape)
  for box, sharding in _boxes((params, moments), mesh):
    if _undivided_size(box, sharding, mesh, axis) is not None:
      on_device += _bytes(sharding.shard_shape(box.value.shape), box)
  return _AxisCost(
    sizes=tuple(sorted(by_size, key=lambda size: -by_size[size])),
    parameters=sum(by_size.values()),
    bytes_on_device=on_device,
    replicated_bytes=on_device - on_device // mesh.shape[axis],
    total_bytes=sum(_bytes(box.value.shape, box) for box, _ in _boxes((params, moments), mesh)),
  )


def _undivided_size(box: Any, sharding: Any, mesh: Mesh, axis: str) -> int | None:
  """Size of the first dimension that the axis should split, if the axis splits no dimension of the array; else None."""
  candidates = [size for name, size in zip(box.names, box.value.shape, strict=True) if axis in axes_of(name)]
  is_split = axis in jax.tree.leaves(tuple(sharding.spec))
  return candidates[0] if candidates and mesh.shape[axis] > 1 and not is_split else None


def _boxes(tree: Any, mesh: Mesh) -> Iterable[tuple[Any, Any]]:
  """All boxed arrays of a tree with their shardings."""
  leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
  for leaf in leaves:
    if isinstance(leaf, nn.LogicallyPartitioned) and jax.tree.leaves(leaf.value):
      yield leaf, param_shardings(leaf, mesh)


def _bytes(shape: tuple[int, ...], box: Any) -> int:
  return math.prod(shape) * box.value.dtype.itemsize


def _size(size: int) -> str:
  return f'{size / 2**30:,.2f} GiB' if size >= 2**27 else f'{size / 2**20:,.2f} MiB'


def _listed(factors: list[int]) -> str:
  return ', '.join(map(str, factors))


def say_costs(config: Config, mesh: Mesh) -> None:
  """Print the cost of mesh axes that do not divide the model, for every stage that will be trained."""
  for stage in stages_of(config):
    if stage == 'sequence' and config.model.kind == 'ngram':
      continue  # estimated from counts, not trained
    # The tokenizer may not exist yet. Its vocabulary will not exceed the configured size, which make_task assumes.
    task = make_task(config, stage)
    for line in lines(task, training_of(config, stage), config, mesh):
      say(line)
