"""Names of accelerators and their compile-only devices: from Google's names, shapes or counts to JAX topologies."""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

from dalle_jax import hardware

# JAX's device kind and the number of devices per chip, by generation.
_TPUS = {'v2': ('TPU v2', 2), 'v3': ('TPU v3', 2), 'v4': ('TPU v4', 1), 'v5e': ('TPU v5 lite', 1), 'v5p': ('TPU v5', 1),
         'v6e': ('TPU v6 lite', 1)}  # fmt: skip
_FLAT: dict[int, tuple[int, ...]] = {n: shape for n, shape in zip(
  (1, 4, 8, 16, 32, 64, 128, 256),
  ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)), strict=True)}  # fmt: skip
_CUBES: dict[int, tuple[int, ...]] = {n: shape for n, shape in zip(
  (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
  ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16),
   (16, 16, 16)), strict=True)}  # fmt: skip
_SHAPES = {'v2': _FLAT, 'v3': _FLAT, 'v4': _CUBES, 'v5e': _FLAT, 'v5p': _CUBES, 'v6e': _FLAT}
# Google's names of these generations count cores, two per chip; names of the other generations count chips.
_NAMED_BY_CORES = ('v2', 'v3', 'v4', 'v5p')
_ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e'}
_GPUS = {
  't4': 'Tesla T4', 'v100': 'Tesla V100-SXM2-32GB', 'l4': 'NVIDIA L4', 'l40s': 'NVIDIA L40S', 'a10g': 'NVIDIA A10G',
  'a100': 'NVIDIA A100-SXM4-80GB', 'a100-40gb': 'NVIDIA A100-SXM4-40GB', 'h100': 'NVIDIA H100 80GB HBM3',
  'h200': 'NVIDIA H200', 'b200': 'NVIDIA B200',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
  """Accelerators and their interconnect.

  Attributes:
    name: the full name of one slice, such as 'v5p:4x4x8' or 'h100:8'.
    platform: 'tpu' or 'gpu'.
    generation: the start of the name, up to the colon.
    shape: chips along each axis of the torus; for GPUs, their number.
    slices: number of such tori, which the data centre's network connects.
    device_kind: JAX's name for a device.
    devices_per_chip: 2 if JAX counts the cores of a chip as devices.
  """

  name: str
  platform: str
  generation: str
  shape: tuple[int, ...]
  slices: int
  device_kind: str
  devices_per_chip: int = 1

  @property
  def num_chips(self) -> int:
    return math.prod(self.shape) * self.slices

  @property
  def num_devices(self) -> int:
    return self.num_chips * self.devices_per_chip

  @property
  def chip(self) -> hardware.Chip:
    """Memory and speed of a device."""
    chip = hardware.chip(self.device_kind)
    assert chip is not None, self.device_kind
    return chip


def known_names() -> str:
  """All supported names, as a few lines for error messages."""
  lines = []
  for generation, shapes in _SHAPES.items():
    names = ', '.join('x'.join(map(str, shape)) for shape in shapes.values())
    most = max(shapes) * (2 if generation in _NAMED_BY_CORES else 1)
    lines.append(f'  {generation}:SHAPE with {names}, or {generation}-N up to {generation}-{most}')
  return '\n'.join([*lines, f'  GPU:N for N GPUs, where GPU is one of {", ".join(_GPUS)}'])


def parse(name: str, slices: int = 1) -> Topology:
  """Parse a topology's name: a shape 'v5p:4x4x8', Google's name 'v5p-256', or a number of GPUs 'h100:8'.

  Args:
    name: the name of one slice.
    slices: the number of slices.

  Raises:
    ValueError: the name is unknown. The message lists all names.
  """
  generation, separator, rest = re.sub(r'[:-](?=[^:-]*$)', ' \\g<0> ', name.strip().lower()).partition(' ')
  mark, rest = rest.strip()[:1], rest.strip()[1:].strip()
  generation = _ALIASES.get(generation, generation)
  if not separator:
    raise _unknown(name)
  if generation in _GPUS and mark == ':' and rest.isdigit() and int(rest) > 0:
    return Topology(f'{generation}:{rest}', 'gpu', generation, (int(rest),), slices, _GPUS[generation])
  if generation not in _TPUS:
    raise _unknown(name)
  shape = _by_number(generation, rest) if mark == '-' else _by_shape(generation, rest)
  if shape is None:
    raise _unknown(name)
  device_kind, per_chip = _TPUS[generation]
  full = f'{generation}:{"x".join(map(str, shape))}'
  return Topology(full, 'tpu', generation, shape, slices, device_kind, per_chip)


def _by_number(generation: str, number: str) -> tuple[int, ...] | None:
  """The shape of the slice with Google's name GENERATION-NUMBER; None if there is no such slice."""
  if not number.isdigit():
    return None
  chips, rest = divmod(int(number), 2 if generation in _NAMED_BY_CORES else 1)
  return None if rest else _SHAPES[generation].get(chips)


def _by_shape(generation: str, words: str) -> tuple[int, ...] | None:
  shape = tuple(int(word) if word.isdigit() else 0 for word in words.split('x'))
  dimensions = len(next(iter(_SHAPES[generation].values())))
  return shape if len(shape) == dimensions and min(shape) > 0 else None


def _unknown(name: str) -> ValueError:
  return ValueError(f'--topology={name} is unknown. Known names:\n{known_names()}')


def compiler_version() -> str:
  """The installed version of libtpu, which contains the compiler for TPUs and needs no TPU.

  Raises:
    ValueError: libtpu is missing, or has another version than the installed JAX requires.
  """
  jax_version = importlib.metadata.version('jax')
  remedy = f"install it with: pip install 'jax[tpu]=={jax_version}' (it needs no TPU)"
  wanted = _wanted_libtpu()
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(f'Compiling for a TPU needs libtpu{wanted}, which is not installed; {remedy}.')
  version = importlib.metadata.version('libtpu')
  if not _satisfies(version, wanted):
    raise ValueError(
      f'libtpu {version} is installed, but jax {jax_version} needs libtpu{wanted}: with another version, JAX fails to '
      f'load compiled programs; {remedy}.'
    )
  return version


def _wanted_libtpu() -> str:
  """The version of libtpu that the installed JAX requires, such as '==0.0.42.*'; '' if it requires none."""
  for line in importlib.metadata.requires('jax') or []:
    match = re.match(r'libtpu\s*([=<>!~][^;]*?)\s*;', line)
    if match:
      return match.group(1)
  return ''


def _satisfies(version: str, wanted: str) -> bool:
  if not wanted.startswith('=='):
    return True
  pattern = re.escape(wanted.removeprefix('==').strip()).replace(r'\.\*', r'(\..*)?')
  return re.fullmatch(pattern, version) is not None


def devices(topology: Topology) -> list[Any]:
  """Compile-only devices of a TPU topology.

  Raises:
    ValueError: libtpu is missing, has the wrong version, or does not know the shape.
  """
  compiler_version()
  # We only compile. libtpu must not search for chips, query the cloud's metadata server, or refuse to load because
  # another process uses it.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5p-8')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  for name in ('TPU_MIN_LOG_LEVEL', 'TPU_STDERR_LOG_LEVEL'):
    os.environ.setdefault(name, '1')  # log warnings, because we read the partitioner's warnings from the log
  import jax
  from jax.experimental import topologies

  options: dict[str, Any] = {'num_slices': topology.slices} if topology.slices > 1 else {}
  if topology.generation == 'v4':
    options['chip_config_name'] = 'megacore'  # as on TPU VMs, where both cores of a chip form one device
  if math.prod(topology.shape) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    compile_devices = topologies.get_topology_desc(topology.name, platform='tpu', **options).devices
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f'--topology={topology.name}: {reason}. Known names:\n{known_names()}') from error
  assert len(compile_devices) == topology.num_devices, (topology, len(compile_devices))
  return list(compile_devices)
