"""The one table that maps logical axis names to the axes of the mesh, and what follows from it.

Modules name the axes of every parameter and of the activations that matter; which mesh axis a name is split over
stands here alone. `dcn_data` and `data` replicate parameters and split the batch, `fsdp` splits both, `tensor` splits
heads, MLP units and vocabularies.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dalle_jax.config import Config, TrainingConfig
from dalle_jax.mesh import AXES, make_mesh, one_device_mesh

__all__ = ['AXES', 'make_mesh', 'one_device_mesh']  # with what is defined here, all that others need of meshes

RULES: dict[str, Any] = {
  'batch': ('dcn_data', 'data', 'fsdp'),
  'length': None,
  'activation': None,
  'height': None,
  'width': None,
  'embed': 'fsdp',
  'qkv': None,
  'heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'mlp_contracted': ('tensor', 'fsdp'),  # rows gather as they lie; parts of rows are copied into place
  'vocab': 'tensor',
  'position': None,
  'layers': None,
  'recurrent': None,
  'shared': None,
  'kernel_height': None,
  'kernel_width': None,
  'conv_in': 'fsdp',
  'conv_out': 'tensor',
  'channels': None,
  'code': 'fsdp',
}


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
  """Sets the mesh and the logical axis rules; jitted functions are built and called inside."""
  # Rules are not part of jit's cache key, so there is one table for the whole program.
  with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
    yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the leading axis over all axes but `tensor`."""
  return NamedSharding(mesh, P(RULES['batch']))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def batch_divisor(mesh: Mesh) -> int:
  """The number every batch must be divisible by."""
  return math.prod(mesh.shape[axis] for axis in RULES['batch'])


def rounded_batch(batch_size: int, mesh: Mesh) -> int:
  """Round a batch size up to a multiple of the number of devices that split it (`batch_divisor`)."""
  divisor = batch_divisor(mesh)
  return -(-batch_size // divisor) * divisor


def axes_of(name: str | None) -> tuple[str, ...]:
  """The mesh axes over which a named axis is split where they divide it, in this order."""
  axes = RULES[name] if name is not None else None
  if axes is None:
    return ()
  return axes if isinstance(axes, tuple) else (axes,)


def _spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> P:
  """The partition of one parameter; a dimension is not split over what does not divide it or is taken already."""
  unknown = [name for name in names if name is not None and name not in RULES]
  assert not unknown, f'logical axes without a rule: {unknown}'
  taken: set[str] = set()
  spec: list[tuple[str, ...]] = []
  for name, size in zip(names, shape, strict=True):
    own: tuple[str, ...] = ()
    for axis in axes_of(name):
      if axis not in taken and size % math.prod(mesh.shape[part] for part in (*own, axis)) == 0:
        own = (*own, axis)
    taken.update(own)
    spec.append(own)
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


def own_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
  """The rows of a batch that this process's devices hold, ascending.

  On a torus they need not lie together; processes between which `tensor` goes hold the same ones.
  """
  parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  return tuple(sorted({row for (part,) in parts for row in range(batch_size)[part]}))


def to_global(batch: Any, mesh: Mesh) -> Any:
  """This process's rows of a batch (`own_rows`) as global arrays, split over the mesh."""
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


def check_batch(training: TrainingConfig, mesh: Mesh, group: str) -> None:
  """Refuses a batch that the devices do not divide.

  Raises:
    ValueError: names the key to change.
  """
  shards, parts = batch_divisor(mesh), training.accumulation_steps
  unit = parts * shards
  if training.batch_size % unit:
    below = training.batch_size // unit * unit
    nearest = ' or '.join(str(size) for size in (below, below + unit) if size)
    raise ValueError(
      f'config.{group}.batch_size {training.batch_size} in {parts} part(s) is not divisible by the {shards} batch '
      f'shards of the mesh {dict(mesh.shape)}; set it to a multiple of {unit}, such as {nearest}, or change '
      f'config.{group}.accumulation_steps or config.mesh.'
    )
