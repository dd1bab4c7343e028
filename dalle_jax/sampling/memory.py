"""How many images can be drawn at a time: what a row takes, and what the devices have left."""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.stream import TokenStream
from dalle_jax.sampling.decode import begin

HEADROOM = 0.8  # of the memory that is free, what drawing may take
COPIES = 2  # of the largest array on the way: what goes into a layer and what comes out
CGROUP = Path('/sys/fs/cgroup')


def row_bytes(model: TokenStream, dvae: Dvae, params: Any, part: str, guided: bool, num_known: int = 0) -> int:
  """About how many bytes it takes to draw one more image.

  That is its caches and logits, and what is largest on the way: scores of attention over what the image begins with,
  or the activations of its pixels.

  Args:
    model: what draws the tokens.
    dvae: what turns them into a picture.
    params: {'dvae', part}, or their shapes.
    part: the collection of parameters that the model has.
    guided: whether guidance doubles the rows.
    num_known: codes that are read before the first one is drawn.
  """

  def read(params: Any, rows: int) -> Any:
    prefix = jnp.zeros((rows, model.text_length + num_known), jnp.int32)
    return begin(model, model.decode_params(params[part]), prefix, prefix if guided else None)

  def paint(params: Any, rows: int) -> Any:
    grid = jnp.zeros((rows, model.grid_size, model.grid_size), jnp.int32)
    return dvae.apply({'params': params['dvae']}, grid, method='decode')

  state, scores = _of_a_row(read, params)
  image, activations = _of_a_row(paint, params)
  return max(state + COPIES * scores, image + COPIES * activations)


def _of_a_row(run: Callable[[Any, int], Any], params: Any) -> tuple[int, int]:
  """Bytes that one more row adds to what `run(params, rows)` returns, and to what grows most on the way."""
  programs = [jax.make_jaxpr(functools.partial(run, rows=rows))(params) for rows in (2, 3)]
  (few, more), (some, others) = zip(*((p.out_avals, list(_made(p.jaxpr))) for p in programs), strict=True)
  growth = [_bytes(b) - _bytes(a) for a, b in zip(some, others, strict=True)]
  return sum(map(_bytes, more)) - sum(map(_bytes, few)), max(growth)


def _made(program: Any) -> Iterator[Any]:
  """The shapes of all arrays that a program makes, also within loops."""
  for equation in program.eqns:
    yield from (variable.aval for variable in equation.outvars)
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from _made(inner)


def _bytes(leaf: Any) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize if jnp.issubdtype(leaf.dtype, jnp.number) else 0


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
  rows = sharding.rounded_batch(asked, mesh) // divisor  # on each device
  if free is not None:
    rows = min(rows, max(1, int(HEADROOM * free) // max(one, 1)))
  return rows * divisor
