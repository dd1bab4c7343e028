"""The device mesh: its axes, the placement of devices, and the errors for sizes that do not fit.

The axes are ordered from the slowest network to the fastest. Along `dcn_data` only gradients are summed. Each index of
`dcn_data` is one TPU slice, or a group of hosts on platforms without slices, such as GPUs.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from dalle_jax.config import Config, MeshConfig

AXES = ('dcn_data', 'data', 'fsdp', 'tensor')
MOST_PROPOSALS = 8


def make_mesh(
  config: MeshConfig | None = None, devices: Sequence[Any] | None = None, model: Config | None = None
) -> Mesh:
  """Builds the mesh of all devices; an axis of size -1 gets the remaining devices, see `MeshConfig`.

  Args:
    config: the sizes of the axes. None splits the batch over all devices of all slices.
    devices: the devices. None uses `jax.devices()`; ahead-of-time compilation passes the devices of a topology.
    model: the experiment's configuration. An open `fsdp` axis (-1) takes a size that divides the model's widths, and
      errors propose sizes that divide widths and heads. None ignores the model.

  Raises:
    ValueError: the product of the sizes is not the number of devices, or `dcn_data` is not the number of slices, or
      does not divide the number of hosts.
  """
  devices = jax.devices() if devices is None else list(devices)
  slices = _num_slices(devices)
  if config is None:
    config = MeshConfig(dcn_data=slices or 1)
  sizes = _filled(config, len(devices), slices, model)
  _check_blocks(sizes['dcn_data'], devices, slices)
  return Mesh(_arranged(devices, tuple(sizes.values()), slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def one_device_mesh() -> Mesh:
  """Builds a mesh of this process's first device only."""
  return Mesh(np.array(jax.local_devices()[:1]).reshape((1,) * len(AXES)), AXES)


def heads_and_widths(config: Config) -> list[tuple[str, int, str, int]]:
  """Lists the sizes of each transformer stack that the task trains.

  Returns:
    For each stack: the key of its number of heads, that number, the key of its width, and that width. Keys are
    relative to `config`, such as 'prior.num_heads'.
  """
  model_groups = config.task_stages[-1].model_groups
  if 'reranker' in model_groups:
    group = config.reranker
    return [
      ('reranker.image_num_heads', group.image_num_heads, 'reranker.image_width', group.image_width),
      ('reranker.text_num_heads', group.text_num_heads, 'reranker.text_width', group.text_width),
    ]
  blocks = {'prior': config.prior, 'model': config.model}
  return [
    (f'{name}.num_heads', group.num_heads, f'{name}.embed_dim', group.embed_dim)
    for name, group in blocks.items()
    if name in model_groups and getattr(group, 'kind', 'transformer') == 'transformer'
  ]


def _num_slices(devices: Sequence[Any]) -> int | None:
  """The number of TPU slices. None for other platforms, which have no slices or report each host as one."""
  if devices[0].platform != 'tpu' or not hasattr(devices[0], 'slice_index'):
    return None
  return len({device.slice_index for device in devices})


def _filled(config: MeshConfig, num_devices: int, slices: int | None, model: Config | None) -> dict[str, int]:
  """The size of each axis, with -1 replaced."""
  requested = {name: getattr(config, name) for name in AXES}
  left = num_devices // math.prod(size for size in requested.values() if size != -1)
  sizes = dict(requested)
  if requested['data'] == requested['fsdp'] == -1:
    widths = [width for *_, width in heads_and_widths(model)] if model else []
    sizes['fsdp'] = max(size for size in [1, *divisors(left)] if not any(width % size for width in widths))
    left //= sizes['fsdp']
  sizes = {name: left if size == -1 else size for name, size in sizes.items()}
  if math.prod(sizes.values()) == num_devices:
    return sizes
  proposals = ', '.join('x'.join(map(str, proposal)) for proposal in _proposals(requested, num_devices, slices, model))
  raise ValueError(
    f'config.mesh {requested} does not fit {num_devices} device(s): the product of the sizes must be {num_devices}. '
    f'Sizes that fit ({" x ".join(AXES)}): {proposals}. Change config.mesh, or set one axis to -1 to fill it.'
  )


def _proposals(
  requested: dict[str, int], num_devices: int, slices: int | None, model: Config | None
) -> list[tuple[int, int, int, int]]:
  """Sizes that fit, best first: sizes that divide the model's dimensions, then sizes close to the requested ones."""
  stacks = heads_and_widths(model) if model else []

  def badness(sizes: tuple[int, int, int, int]) -> tuple[int, ...]:
    dcn_data, _, fsdp, tensor = sizes
    uneven = sum((heads % tensor != 0) + (width % fsdp != 0) for _, heads, _, width in stacks)
    changed = sum(value not in (-1, size) for value, size in zip(requested.values(), sizes, strict=True))
    return uneven, changed, dcn_data, tensor, -fsdp

  return sorted(factorings(num_devices, slices), key=badness)[:MOST_PROPOSALS]


def factorings(count: int, slices: int | None) -> Iterator[tuple[int, int, int, int]]:
  """Yields all sizes of the axes whose product is `count`. With `slices`, the first axis always has that size."""
  for dcn_data in [slices] if slices else divisors(count):
    for fsdp in divisors(count // dcn_data):
      for tensor in divisors(count // dcn_data // fsdp):
        yield dcn_data, count // dcn_data // fsdp // tensor, fsdp, tensor


def divisors(number: int) -> list[int]:
  """All divisors of a number, ascending."""
  return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _check_blocks(dcn_data: int, devices: Sequence[Any], slices: int | None) -> None:
  """Checks that `dcn_data` is the number of slices, or divides the hosts into groups of equal size."""
  if slices and dcn_data != slices:
    raise ValueError(
      f'config.mesh.dcn_data is {dcn_data}, but the {len(devices)} devices are in {slices} slice(s); '
      f'set config.mesh.dcn_data={slices}.'
    )
  hosts = len({device.process_index for device in devices})
  if hosts > 1 and hosts % dcn_data:
    raise ValueError(
      f'config.mesh.dcn_data is {dcn_data}, which does not divide the {hosts} hosts into groups of equal size; '
      f'set it to one of {", ".join(map(str, divisors(hosts)))}.'
    )


def _arranged(devices: Sequence[Any], shape: tuple[int, ...], slices: int | None) -> np.ndarray:
  """Arranges devices into the mesh's shape; each index of `dcn_data` is one slice or a group of contiguous hosts."""
  if slices is None:
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return np.array(ordered).reshape(shape)
  try:
    return _on_torus(devices, shape, allow_split_physical_axes=False)
  except NotImplementedError:
    # Some mesh axis is not a product of whole torus axes, so a torus axis must be split.
    return _on_torus(devices, shape, allow_split_physical_axes=True)


def _on_torus(devices: Sequence[Any], shape: tuple[int, ...], allow_split_physical_axes: bool) -> np.ndarray:
  """Places TPU devices so that neighbours in the mesh are neighbours in each slice's torus."""
  slices, *inner = shape
  return mesh_utils.create_hybrid_device_mesh(
    (1, *inner), (slices, 1, 1, 1), devices, allow_split_physical_axes=allow_split_physical_axes
  )
