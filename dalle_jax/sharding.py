"""The device mesh and the one table that maps logical axis names to its axes.

Modules name the axes of every parameter and of the activations that matter; which mesh axis a name is split over
stands here alone. `data` replicates parameters and splits the batch, `fsdp` splits both, `tensor` splits heads, MLP
units and vocabularies.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dalle_jax.config import Config, MeshConfig, TrainingConfig

AXES = ('data', 'fsdp', 'tensor')

RULES: dict[str, Any] = {
  'batch': ('data', 'fsdp'),
  'length': None,
  'activation': None,
  'height': None,
  'width': None,
  'embed': 'fsdp',
  'qkv': None,
  'heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'vocab': 'tensor',
  'position': None,
  'layers': None,
  'kernel_height': None,
  'kernel_width': None,
  'conv_in': 'fsdp',
  'conv_out': 'tensor',
}


def make_mesh(config: MeshConfig) -> Mesh:
  """The mesh of all devices, with -1 replaced by what is left.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  count = jax.device_count()
  sizes = {name: getattr(config, name) for name in AXES}
  fixed = math.prod(size for size in sizes.values() if size != -1)
  filled = {name: count // fixed if size == -1 else size for name, size in sizes.items()}
  if math.prod(filled.values()) != count:
    raise ValueError(
      f'config.mesh {sizes} does not fit {count} device(s): the sizes must multiply to {count}; '
      'set one of config.mesh.data, fsdp and tensor to -1 to fill.'
    )
  return jax.make_mesh(tuple(filled.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def one_device_mesh() -> Mesh:
  """The mesh of the first device alone, whatever others there are."""
  return jax.make_mesh((1,) * len(AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.local_devices()[:1])


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
  """Sets the mesh and the logical axis rules; jitted functions are built and called inside."""
  # Rules are not part of jit's cache key, so there is one table for the whole program.
  with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
    yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the leading axis over `data` and `fsdp`."""
  return NamedSharding(mesh, P(RULES['batch']))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def batch_divisor(mesh: Mesh) -> int:
  """The number every batch must be divisible by."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def _spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> P:
  """The partition of one parameter; a dimension stays whole if its mesh axis does not divide it or is taken already."""
  unknown = [name for name in names if name is not None and name not in RULES]
  assert not unknown, f'logical axes without a rule: {unknown}'
  spec: list[str | None] = []
  for name, size in zip(names, shape, strict=True):
    axis = RULES[name] if name is not None else None
    fits = axis is not None and axis not in spec and size % mesh.shape[axis] == 0
    spec.append(axis if fits else None)
  return P(*spec)


def param_shardings(abstract: Any, mesh: Mesh) -> Any:
  """Shardings of a tree of shapes.

  Args:
    abstract: tree of `jax.ShapeDtypeStruct`, boxed by `nn.LogicallyPartitioned` where the axes are named.
    mesh: the device mesh.

  Returns:
    The same tree without boxes, with a `NamedSharding` for every leaf (replicated where unnamed).
  """

  def one(leaf: Any) -> Any:
    if isinstance(leaf, nn.LogicallyPartitioned):
      if not jax.tree.leaves(leaf.value):
        return leaf.value  # the optimizer keeps nothing for this parameter
      return NamedSharding(mesh, _spec(leaf.names, leaf.value.shape, mesh))
    return replicated(mesh)

  return jax.tree.map(one, abstract, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def to_global(batch: Any, mesh: Mesh) -> Any:
  """This process's rows of a batch as global arrays, split over the mesh."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def from_whole(batch: Any, mesh: Mesh) -> Any:
  """A batch that every process holds whole, as global arrays split over the mesh."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda part: x[part]), batch)


def check(config: Config, mesh: Mesh) -> None:
  """Refuses, before any work, a configuration that the mesh cannot split.

  Raises:
    ValueError: names the key to change.
  """
  for group in config.training_groups:
    check_batch(getattr(config, group), mesh, group)
  tensor = mesh.shape['tensor']
  keys = {'sequence': ('model.num_heads',), 'reranker': ('reranker.image_num_heads', 'reranker.text_num_heads')}
  for key in keys.get(config.task, ('prior.num_heads',)):
    group, name = key.split('.')
    num_heads = getattr(getattr(config, group), name)
    if num_heads % tensor:
      raise ValueError(
        f'config.{key} {num_heads} is not divisible by the tensor axis {tensor} of the mesh; '
        f'change config.{key} or config.mesh.tensor.'
      )


def check_batch(training: TrainingConfig, mesh: Mesh, group: str) -> None:
  """Refuses a batch that the devices or hosts do not divide.

  Raises:
    ValueError: names the key to change.
  """
  divisor = batch_divisor(mesh)
  part = training.batch_size // training.accumulation_steps
  if part % divisor or part % jax.process_count():
    raise ValueError(
      f'config.{group}.batch_size {training.batch_size} in {training.accumulation_steps} part(s) is not divisible by '
      f'the {divisor} batch shards of the mesh {dict(mesh.shape)} on {jax.process_count()} host(s); change '
      f'config.{group}.batch_size, accumulation_steps or config.mesh.'
    )
