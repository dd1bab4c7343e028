"""The device mesh: its axes, which devices stand where, and what is said of sizes that do not fit.

The axes go from the slowest network to the fastest. Over `dcn_data` only gradients are summed; a slice, or where there
are none, such as on GPUs, a group of hosts, is one block of it.
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
  """The mesh of all devices, with -1 replaced by what is left; see `MeshConfig`.

  Args:
    config: the sizes; None: the batch is split over all devices, however many slices they are in.
    devices: None for all there are; or others, such as those of a topology that is compiled for ahead of time.
    model: the configuration whose widths `fsdp` divides where it is open, as sizes proposed in errors divide heads too.

  Raises:
    ValueError: the sizes do not multiply to the number of devices; `dcn_data` is not the number of their slices, or
      does not divide their hosts.
  """
  devices = jax.devices() if devices is None else list(devices)
  slices = _num_slices(devices)
  if config is None:
    config = MeshConfig(dcn_data=slices or 1)
  sizes = _filled(config, len(devices), slices, model)
  _check_blocks(sizes['dcn_data'], devices, slices)
  return Mesh(_arranged(devices, tuple(sizes.values()), slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def one_device_mesh() -> Mesh:
  """The mesh of the first device alone, whatever others there are."""
  return Mesh(np.array(jax.local_devices()[:1]).reshape((1,) * len(AXES)), AXES)


def heads_and_widths(config: Config) -> list[tuple[str, int, str, int]]:
  """Of every stack of transformer blocks that the task trains, the key and number of heads, and the key and width."""
  if config.task == 'reranker':
    group = config.reranker
    return [
      ('reranker.image_num_heads', group.image_num_heads, 'reranker.image_width', group.image_width),
      ('reranker.text_num_heads', group.text_num_heads, 'reranker.text_width', group.text_width),
    ]
  if config.task == 'dvae' or (config.task == 'sequence' and config.model.kind != 'transformer'):
    return []
  name = 'model' if config.task == 'sequence' else 'prior'
  group = getattr(config, name)
  return [(f'{name}.num_heads', group.num_heads, f'{name}.embed_dim', group.embed_dim)]


def _num_slices(devices: Sequence[Any]) -> int | None:
  """The number of TPU slices; None of other devices, which have none or call every host one."""
  if devices[0].platform != 'tpu' or not hasattr(devices[0], 'slice_index'):
    return None
  return len({device.slice_index for device in devices})


def _filled(config: MeshConfig, count: int, slices: int | None, model: Config | None) -> dict[str, int]:
  given = {name: getattr(config, name) for name in AXES}
  left = count // math.prod(size for size in given.values() if size != -1)
  sizes = dict(given)
  if given['data'] == given['fsdp'] == -1:
    widths = [width for *_, width in heads_and_widths(model)] if model else []
    sizes['fsdp'] = max(size for size in [1, *divisors(left)] if not any(width % size for width in widths))
    left //= sizes['fsdp']
  sizes = {name: left if size == -1 else size for name, size in sizes.items()}
  if math.prod(sizes.values()) == count:
    return sizes
  proposals = ', '.join('x'.join(map(str, found)) for found in _proposals(given, count, slices, model))
  raise ValueError(
    f'config.mesh {given} does not fit {count} device(s): the sizes must multiply to {count}, as do {proposals} '
    f'({" x ".join(AXES)}). Change one of them, or set it to -1 to fill.'
  )


def _proposals(
  given: dict[str, int], count: int, slices: int | None, model: Config | None
) -> list[tuple[int, int, int, int]]:
  """Sizes that fit, the best first: those that split the model cleanly, then those nearest to what was given."""
  stacks = heads_and_widths(model) if model else []

  def badness(sizes: tuple[int, int, int, int]) -> tuple[int, ...]:
    dcn_data, _, fsdp, tensor = sizes
    uneven = sum((heads % tensor != 0) + (width % fsdp != 0) for _, heads, _, width in stacks)
    changed = sum(value not in (-1, size) for value, size in zip(given.values(), sizes, strict=True))
    return uneven, changed, dcn_data, tensor, -fsdp

  return sorted(factorings(count, slices), key=badness)[:MOST_PROPOSALS]


def factorings(count: int, slices: int | None) -> Iterator[tuple[int, int, int, int]]:
  """All sizes of the axes that multiply to `count`, with `slices` for the first where that is given."""
  for dcn_data in [slices] if slices else divisors(count):
    for fsdp in divisors(count // dcn_data):
      for tensor in divisors(count // dcn_data // fsdp):
        yield dcn_data, count // dcn_data // fsdp // tensor, fsdp, tensor


def divisors(number: int) -> list[int]:
  """Ascending."""
  return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _check_blocks(dcn_data: int, devices: Sequence[Any], slices: int | None) -> None:
  if slices and dcn_data != slices:
    raise ValueError(
      f'config.mesh.dcn_data is {dcn_data}, but the {len(devices)} devices are in {slices} slice(s); '
      f'set config.mesh.dcn_data={slices}.'
    )
  hosts = len({device.process_index for device in devices})
  if hosts > 1 and hosts % dcn_data:
    raise ValueError(
      f'config.mesh.dcn_data is {dcn_data}, which does not divide the {hosts} hosts into groups of one size; '
      f'set it to one of {", ".join(map(str, divisors(hosts)))}.'
    )


def _arranged(devices: Sequence[Any], shape: tuple[int, ...], slices: int | None) -> np.ndarray:
  """The devices as an array of the mesh's shape, a block of `dcn_data` being one slice or contiguous hosts."""
  if slices is None:
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return np.array(ordered).reshape(shape)
  try:
    return _on_torus(devices, shape, allow_split_physical_axes=False)
  except NotImplementedError:
    # An axis of the mesh is not a product of whole axes of the torus.
    return _on_torus(devices, shape, allow_split_physical_axes=True)


def _on_torus(devices: Sequence[Any], shape: tuple[int, ...], allow_split_physical_axes: bool) -> np.ndarray:
  slices, *inner = shape
  return mesh_utils.create_hybrid_device_mesh(
    (1, *inner), (slices, 1, 1, 1), devices, allow_split_physical_axes=allow_split_physical_axes
  )
