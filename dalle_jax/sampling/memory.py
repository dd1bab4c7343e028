"""How many images can be drawn at a time: what a row takes, and what the devices have left."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.stream import TokenStream
from dalle_jax.sampling.decode import begin

HEADROOM = 0.8  # of the memory that is free, what drawing may take
SLACK = 1.5  # what lies beside scores of attention: their exponentials, activations
COPIES = 2  # of the largest array of a layer: what goes in and what comes out
CGROUP = Path('/sys/fs/cgroup')


def row_bytes(model: TokenStream, dvae: Dvae, params: Any, part: str, guided: bool, num_known: int = 0) -> int:
  """About how many bytes it takes to draw one more image: its caches and logits, or the pixels' activations if more.

  Reading what the image begins with has its scores of attention besides, which are dense.

  Args:
    model: what draws the tokens.
    dvae: what turns them into a picture.
    params: {'dvae', part}, or their shapes.
    part: the collection of parameters that the model has.
    guided: whether guidance doubles the rows.
    num_known: codes that are read before the first one is drawn.
  """
  text = jax.ShapeDtypeStruct((1, max(model.text_length - 1, 0)), jnp.int32)

  def read(params: Any, text: jax.Array) -> Any:
    prefix = model.prefix(text)
    return begin(model, model.decode_params(params[part]), prefix, prefix if guided else None)

  def paint(params: Any) -> Any:
    grid = jnp.zeros((1, model.grid_size, model.grid_size), jnp.int32)
    return dvae.apply({'params': params['dvae']}, grid, method='decode', capture_intermediates=True)[1]

  state = sum(map(_bytes, jax.tree.leaves(jax.eval_shape(read, params, text))))
  heads = model.transformer.shape.num_heads if isinstance(model, Prior) else 0
  scores = SLACK * 4 * heads * (model.text_length + num_known) ** 2 * (2 if guided else 1)
  largest = max(map(_bytes, jax.tree.leaves(jax.eval_shape(paint, params))))
  return int(max(state + scores, COPIES * largest))


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
  return int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize if jnp.issubdtype(leaf.dtype, jnp.number) else 0


def free_bytes(mesh: Mesh) -> int | None:
  """Memory that is free for arrays on one of the devices; None where it cannot be told."""
  device = mesh.local_devices[0]
  stats = device.memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats['bytes_in_use']
  if device.platform != 'cpu':
    return None
  free = [size for size in (_of_machine(), _of_group()) if size is not None]
  return min(free) // len(mesh.local_devices) if free else None  # devices of one machine share its memory


def _of_machine() -> int | None:
  try:
    lines = Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return None
  kilobytes = [int(line.split()[1]) for line in lines if line.startswith('MemAvailable:')]
  return 1024 * kilobytes[0] if kilobytes else None


def _of_group() -> int | None:
  """What a container or a batch system leaves of its limit."""
  try:
    limit, used = ((CGROUP / name).read_text().strip() for name in ('memory.max', 'memory.current'))
    return int(limit) - int(used) if limit != 'max' else None
  except (OSError, ValueError):
    return None


def fitting_batch(asked: int, one: int, free: int | None, mesh: Mesh) -> int:
  """The batch size, at most `asked` rounded up to what the devices divide, that memory holds; at least one row each.

  Args:
    asked: images at a time.
    one: bytes of an image.
    free: bytes on a device; None for no limit.
    mesh: of the devices.
  """
  divisor = sharding.batch_divisor(mesh)
  rows = -(-asked // divisor)  # on each device
  if free is not None:
    rows = min(rows, max(1, int(HEADROOM * free) // max(one, 1)))
  return rows * divisor
