"""Estimate how many images fit in device memory: bytes per image and free bytes per device."""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.stream import StreamModel
from dalle_jax.sampling.decode import begin

HEADROOM = 0.8  # share of the free memory that sampling may use
COPIES = 2  # copies of the largest intermediate array that exist at once: a layer's input and its output
CGROUP = Path('/sys/fs/cgroup')


def row_bytes(model: Prior | StreamModel, dvae: Dvae, params: Any, part: str, guided: bool, num_known: int = 0) -> int:
  """Estimate the bytes that one more image adds to a batch.

  The estimate is the larger of two sums:
  - reading the prefix: the cache, the logits, and the attention scores over the prefix;
  - decoding: the image and the largest activations of the decoder.

  Args:
    model: the model that samples the tokens.
    dvae: the module that decodes the tokens.
    params: parameters, or their shapes, under the keys 'dvae' and `part`.
    part: the key of the model's parameters.
    guided: whether guidance doubles the rows.
    num_known: known codes that are read before the first one is sampled.
  """

  def read_prefix(params: Any, rows: int) -> Any:
    prefix = jnp.zeros((rows, model.text_length + num_known), jnp.int32)
    return begin(model, model.decode_params(params[part]), prefix, prefix if guided else None)

  def decode_images(params: Any, rows: int) -> Any:
    grid = jnp.zeros((rows, model.grid_size, model.grid_size), jnp.int32)
    return dvae.apply({'params': params['dvae']}, grid, method='decode')

  state, scores = _growth_per_row(read_prefix, params)
  image, activations = _growth_per_row(decode_images, params)
  return max(state + COPIES * scores, image + COPIES * activations)


def _growth_per_row(run: Callable[..., Any], params: Any) -> tuple[int, int]:
  """Trace `run(params, rows)` with 2 and 3 rows and compare the sizes of its arrays.

  Returns:
    The bytes that a row adds to the outputs, and the bytes that it adds to the intermediate array that grows most.
  """
  programs = [jax.make_jaxpr(functools.partial(run, rows=rows))(params) for rows in (2, 3)]
  outputs_2, outputs_3 = (program.out_avals for program in programs)
  arrays_2, arrays_3 = (list(_all_arrays(program.jaxpr)) for program in programs)
  growth = [_bytes(larger) - _bytes(smaller) for smaller, larger in zip(arrays_2, arrays_3, strict=True)]
  return sum(map(_bytes, outputs_3)) - sum(map(_bytes, outputs_2)), max(growth)


def _all_arrays(program: Any) -> Iterator[Any]:
  """Yield the abstract values of all arrays that a jaxpr computes, including those in nested jaxprs such as loops."""
  for equation in program.eqns:
    yield from (variable.aval for variable in equation.outvars)
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from _all_arrays(inner)


def _bytes(leaf: Any) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize if jnp.issubdtype(leaf.dtype, jnp.number) else 0


def free_bytes(mesh: Mesh) -> int | None:
  """Free memory per device in bytes, measured on this process's first device; None if it is unknown."""
  device = mesh.local_devices[0]
  stats = device.memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats['bytes_in_use']
  if device.platform != 'cpu':
    return None
  limits = [size for size in (_free_in_machine(), _free_in_cgroup()) if size is not None]
  return min(limits) // len(mesh.local_devices) if limits else None  # CPU devices share the machine's memory


def check_images(count: int, config: Config) -> None:
  """Check that the memory of this machine can hold the images, or texts, that a command generates.

  Args:
    count: the number of images or texts of all prompts, candidates included.
    config: the model's configuration.

  Raises:
    ValueError: they, their tokens and one copy of both take more than the free memory.
  """
  size = config.data.image_size
  if config.task == 'sequence' and config.model.tokens == 'text':
    bytes_each, what = 4 * config.model.length, f'texts of {config.model.length} tokens'
  else:
    tokens = config.tokenizer.text_length + config.image_length
    bytes_each, what = 3 * size**2 + 4 * tokens, f'images of {size} x {size} pixels'
  needed = count * COPIES * bytes_each
  limits = [size for size in (_free_in_machine(), _free_in_cgroup()) if size is not None]
  if limits and needed > min(limits):
    raise ValueError(
      f'{count:,} {what} take {needed / 1e9:,.0f} GB of memory, but only {min(limits) / 1e9:,.0f} GB are free. Ask for '
      'fewer (--num_images, --candidates, prompts), and sample the others with another --seed.'
    )


def _free_in_machine() -> int | None:
  """The machine's available memory in bytes; None if the system does not report it."""
  try:
    lines = Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return None
  kilobytes = [int(line.split()[1]) for line in lines if line.startswith('MemAvailable:')]
  return 1024 * kilobytes[0] if kilobytes else None


def _free_in_cgroup() -> int | None:
  """Bytes left below the memory limit of a container or a batch job; None if there is no limit."""
  try:
    limit, used = ((CGROUP / name).read_text().strip() for name in ('memory.max', 'memory.current'))
    return int(limit) - int(used) if limit != 'max' else None
  except (OSError, ValueError):
    return None


def fitting_batch(asked: int, one: int, free: int | None, mesh: Mesh) -> int:
  """The largest batch size that fits in memory, a multiple of the devices that split it.

  The result is at most `asked`, rounded up to that multiple, and at least one image per device.

  Args:
    asked: the requested batch size.
    one: bytes per image.
    free: free bytes per device; None for no limit.
    mesh: the device mesh that splits the batch.
  """
  divisor = sharding.batch_divisor(mesh)
  rows = sharding.rounded_batch(asked, mesh) // divisor  # per device
  if free is not None:
    rows = min(rows, max(1, int(HEADROOM * free) // max(one, 1)))
  return rows * divisor
