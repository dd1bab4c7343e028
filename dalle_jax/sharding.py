"""Maps logical axis names to mesh axes, and derives the shardings of parameters and batches.

Modules name the axes of every parameter and of the large activations. `RULES` is the only place that says which mesh
axis splits which name:

- `dcn_data` and `data` split the batch and replicate parameters.
- `fsdp` splits the batch and parameters.
- `tensor` splits heads, MLP units and vocabularies.
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

__all__ = ['AXES', 'make_mesh', 'one_device_mesh']  # re-exported, so that callers import meshes and shardings from here

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
  # Split by rows over both axes: gathered rows are contiguous, but gathered pieces of rows would have to be copied.
  'mlp_contracted': ('tensor', 'fsdp'),
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
  """Sets the mesh and the logical axis rules. Build and call jitted functions inside this context."""
  # The rules are not part of jit's cache key, so the whole program must use the same table.
  with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
    yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: its leading axis is split over all mesh axes except `tensor`."""
  return NamedSharding(mesh, P(RULES['batch']))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds in full."""
  return NamedSharding(mesh, P())


def batch_divisor(mesh: Mesh) -> int:
  """The number of batch shards, which must divide every batch size."""
  return math.prod(mesh.shape[axis] for axis in RULES['batch'])


def rounded_batch(batch_size: int, mesh: Mesh) -> int:
  """Round a batch size up to a multiple of the number of devices that split it (`batch_divisor`)."""
  divisor = batch_divisor(mesh)
  return -(-batch_size // divisor) * divisor


def axes_of(name: str | None) -> tuple[str, ...]:
  """The mesh axes that may split a logical axis, in the order in which they are tried."""
  axes = RULES[name] if name is not None else None
  if axes is None:
    return ()
  return axes if isinstance(axes, tuple) else (axes,)


def _spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> P:
  """The partition spec of a parameter.

  A mesh axis is skipped if it does not divide the dimension, or if it already splits an earlier dimension.
  """
  unknown = [name for name in names if name is not None and name not in RULES]
  assert not unknown, f'logical axes without a rule: {unknown}'
  taken: set[str] = set()
  spec: list[tuple[str, ...]] = []
  for name, size in zip(names, shape, strict=True):
    split: tuple[str, ...] = ()
    for axis in axes_of(name):
      if axis not in taken and size % math.prod(mesh.shape[mesh_axis] for mesh_axis in (*split, axis)) == 0:
        split = (*split, axis)
    taken.update(split)
    spec.append(split)
  return P(*spec)


def param_shardings(abstract: Any, mesh: Mesh) -> Any:
  """Computes the sharding of every leaf of a parameter tree.

  Args:
    abstract: tree of `jax.ShapeDtypeStruct`; leaves with named axes are boxed in `nn.LogicallyPartitioned`.
    mesh: the device mesh.

  Returns:
    The unboxed tree with a `NamedSharding` for every leaf. Leaves without named axes are replicated.
  """

  def leaf_sharding(leaf: Any) -> Any:
    if isinstance(leaf, nn.LogicallyPartitioned):
      if not jax.tree.leaves(leaf.value):
        return leaf.value  # the optimizer has no state for this parameter
      return NamedSharding(mesh, _spec(leaf.names, leaf.value.shape, mesh))
    return replicated(mesh)

  return jax.tree.map(leaf_sharding, abstract, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def own_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
  """Indices of the batch rows that this process's devices hold, ascending.

  On a torus, a process may hold rows that are not contiguous. Processes that differ only along `tensor` hold the same
  rows.
  """
  rows: set[int] = set()
  for shard in batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values():
    assert shard is not None  # every device holds a part
    rows.update(range(batch_size)[shard[0]])
  return tuple(sorted(rows))


def to_global(batch: Any, mesh: Mesh) -> Any:
  """Turns this process's rows of a batch (`own_rows`) into global arrays that are split over the mesh."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def from_whole(batch: Any, mesh: Mesh) -> Any:
  """Turns a batch that every process holds in full into global arrays that are split over the mesh."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)


def check(config: Config, mesh: Mesh) -> None:
  """Checks before any work that the mesh can split the batches of all stages that the task trains.

  Raises:
    ValueError: a batch size does not fit; the message names the key to change.
  """
  for group in config.training_groups:
    check_batch(getattr(config, group), mesh, group)


def check_batch(training: TrainingConfig, mesh: Mesh, group: str) -> None:
  """Checks that the batch size is divisible by the number of batch shards times accumulation steps.

  Args:
    training: the training group of one stage.
    mesh: the device mesh.
    group: the group's name in the configuration, such as 'prior_training'.

  Raises:
    ValueError: the batch size is not divisible; the message names the key to change.
  """
  shards, accumulation_steps = batch_divisor(mesh), training.accumulation_steps
  unit = accumulation_steps * shards
  if training.batch_size % unit:
    below = training.batch_size // unit * unit
    nearest = ' or '.join(str(size) for size in (below, below + unit) if size)
    raise ValueError(
      f'config.{group}.batch_size {training.batch_size} is not divisible by {unit}: {shards} batch shards of the mesh '
      f'{dict(mesh.shape)} times {accumulation_steps} accumulation step(s). Set it to a multiple of {unit}, such as '
      f'{nearest}, or change config.{group}.accumulation_steps or config.mesh.'
    )
