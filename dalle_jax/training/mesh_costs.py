"""What a mesh costs whose sizes do not divide the model: parameters that are not split, heads computed for nothing.

All of it is correct; it only takes more memory and time than it might. XLA fills heads up to a multiple of the axis,
while parameters that an axis does not divide stay whole along it.
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
from dalle_jax.training.tasks import Task

# Below either, nothing is said.
SMALLEST_SHARE = 1e-3  # of the state's bytes
SMALLEST_BYTES = 2**20


def lines(task: Task, training: TrainingConfig, config: Config, mesh: Mesh) -> list[str]:
  """A sentence or two for each axis of the mesh that costs something; none where nothing is lost.

  Args:
    task: what is trained; nothing is computed but shapes.
    training: says which moments and averages are kept.
    config: whose heads and widths are named.
    mesh: of the devices, or an abstract one.
  """
  if mesh.shape['fsdp'] == mesh.shape['tensor'] == 1:
    return []
  params, kept = _abstract(task, training)
  found = []
  for axis, describe in (('fsdp', _say_fsdp), ('tensor', _say_tensor)):
    lost = _lost(params, kept, mesh, axis)
    if lost.repeated_bytes >= max(SMALLEST_BYTES, SMALLEST_SHARE * lost.total_bytes):
      found.append(describe(lost, config, mesh))
  return found


@dataclasses.dataclass(frozen=True)
class _Lost:
  """What is not split along an axis of the mesh though its name would have it."""

  sizes: tuple[int, ...]  # of the dimensions that the axis does not divide, the most parameters first
  parameters: int
  bytes_on_device: int  # of these parameters, their moments and averages
  repeated_bytes: int  # the part of these that another device along the axis has too
  total_bytes: int  # of the whole state, on all devices together

  @property
  def cost(self) -> str:
    return (
      f'{self.parameters:,} parameters are not split by it, which takes {_size(self.repeated_bytes)} more on every '
      f'device ({_size(self.bytes_on_device)} instead of {_size(self.bytes_on_device - self.repeated_bytes)} for them, '
      'their moments and averages)'
    )


def _say_fsdp(lost: _Lost, config: Config, mesh: Mesh) -> str:
  keys = {width: f' (config.{key})' for _, _, key, width in heads_and_widths(config)}
  size, axis = lost.sizes[0], mesh.shape['fsdp']
  clean = [factor for factor in divisors(size) if mesh.size % factor == 0]
  return (
    f'mesh: config.mesh.fsdp {axis} does not divide {size}{keys.get(size, "")}: {lost.cost}. '
    f'What divides {size} and the {mesh.size} devices: {_listed(clean)}; the rest may go to config.mesh.data.'
  )


def _say_tensor(lost: _Lost, config: Config, mesh: Mesh) -> str:
  axis = mesh.shape['tensor']
  for key, heads, _, _ in heads_and_widths(config):
    if heads in lost.sizes:
      computed = -(-heads // axis) * axis
      return (
        f'mesh: config.mesh.tensor {axis} does not divide {heads} heads (config.{key}): {lost.cost}, and {computed} '
        f'heads are computed instead of {heads} ({computed / heads - 1:.1%} more). '
        f'What divides {heads}: {_listed(divisors(heads))}.'
      )
  sizes = ' and '.join(map(str, lost.sizes[:3]))
  return (
    f'mesh: config.mesh.tensor {axis} does not divide {sizes}: {lost.cost}. '
    f'What divides {lost.sizes[0]}: {_listed([factor for factor in divisors(lost.sizes[0]) if factor <= mesh.size])}.'
  )


def _abstract(task: Task, training: TrainingConfig) -> tuple[Any, Any]:
  """Shapes of the parameters, and of the moments and averages kept of them, in boxes with the names of their axes."""

  def build(key: jax.Array) -> tuple[Any, Any]:
    params = task.init(key)
    trained = {name: params[name] for name in task.trainable}
    averaged = {name: params[name] for name in (*task.trainable, *task.updated)} if training.ema_decay else None
    return params, (make_optimizer(training).init(trained), averaged)

  return jax.eval_shape(build, jax.random.key(0))


def _lost(params: Any, kept: Any, mesh: Mesh, axis: str) -> _Lost:
  by_size: dict[int, int] = {}
  on_device = 0
  for box, held in _boxes(params, mesh):
    if (size := _undivided(box, held, mesh, axis)) is not None:
      by_size[size] = by_size.get(size, 0) + math.prod(box.value.shape)
  for box, held in _boxes((params, kept), mesh):
    if _undivided(box, held, mesh, axis) is not None:
      on_device += _bytes(held.shard_shape(box.value.shape), box)
  return _Lost(
    sizes=tuple(sorted(by_size, key=lambda size: -by_size[size])),
    parameters=sum(by_size.values()),
    bytes_on_device=on_device,
    repeated_bytes=on_device - on_device // mesh.shape[axis],
    total_bytes=sum(_bytes(box.value.shape, box) for box, _ in _boxes((params, kept), mesh)),
  )


def _undivided(box: Any, held: Any, mesh: Mesh, axis: str) -> int | None:
  """The dimension that should be split along the axis, if there is one and the axis divides none such."""
  wanted = [size for name, size in zip(box.names, box.value.shape, strict=True) if axis in axes_of(name)]
  return wanted[0] if wanted and mesh.shape[axis] > 1 and axis not in jax.tree.leaves(tuple(held.spec)) else None


def _boxes(tree: Any, mesh: Mesh) -> Iterable[tuple[Any, Any]]:
  """Every named array and its sharding."""
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
  """Says what the sizes of the mesh cost, of every stage that will be trained; nothing where nothing is lost."""
  for stage in stages_of(config):
    if stage == 'sequence' and config.model.kind == 'ngram':
      continue  # counted, not trained
    task = make_task(config, stage)  # the tokenizer, perhaps not learnt yet, has no more ids
    for line in lines(task, training_of(config, stage), config, mesh):
      say(line)
