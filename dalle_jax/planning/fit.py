"""Does it fit, and how fast would it be: for a configuration and accelerators that need not be there."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.planning import arithmetic, drawing, programs, topologies
from dalle_jax.planning.compile import Compiled, OutOfMemoryError, compile_program
from dalle_jax.planning.estimate import Estimate, exchange_seconds
from dalle_jax.planning.hlo import Collective
from dalle_jax.planning.report import MOST_COSTS, Report
from dalle_jax.planning.topologies import Topology
from dalle_jax.training import mesh_costs
from dalle_jax.training.stage_tasks import make_task, training_of

Tell = Callable[[str], None]


def find_devices(topology: Topology) -> list[Any]:
  """The devices to compile for: of a TPU topology those of its compiler, of GPUs those that are there, if all are.

  Raises:
    ValueError: libtpu is absent or of another version, or does not know the shape.
  """
  if topology.platform == 'tpu':
    return topologies.devices(topology)
  found = [device for device in jax.devices() if device.device_kind == topology.device_kind]
  return found if len(found) == topology.num_devices else []


def fit_training(config: Config, stage: str, topology: Topology, efficiency: float, tell: Tell = print) -> Report:
  """Compiles the optimizer step of a stage, or computes what it takes where its devices have no compiler here.

  Args:
    config: of the experiment; its mesh is filled up to the devices of the topology.
    stage: what is trained.
    topology: the accelerators.
    efficiency: of the peak, what matrix products reach; read where no compiler says.
    tell: takes lines about what is going on.

  Raises:
    ValueError: the mesh or the batch does not fit the devices, or the compiler is absent.
  """
  devices = find_devices(topology)
  mesh: Any = make_mesh(config, topology, devices)
  training = training_of(config, stage)
  sharding.check_batch(training, mesh, f'{stage}_training')
  common = {'mesh': dict(mesh.shape), 'settings': settings_of(config, stage), 'num_steps': training.num_steps}
  if not devices:
    return _by_arithmetic(config, stage, topology, mesh, efficiency, common)
  for line in mesh_costs.lines(make_task(config, stage), training, config, mesh):
    tell(line)
  program = programs.training_program(config, stage, mesh)
  work = programs.training_work(config, stage)
  tell(f'compiling the {program.name} for {len(devices)} devices of {topology.name}')
  try:
    compiled = compile_program(program, mesh)
  except OutOfMemoryError as error:
    return _refused(program, topology, error, Estimate(0, 0, 0, work, topology, 'refused'), common)
  if topology.platform == 'gpu':
    found = arithmetic.costs(config, stage)
    estimate = arithmetic.estimate(config, stage, mesh, topology, found, efficiency)
    return _report([compiled], topology, estimate, arithmetic.exchanged(config, stage, mesh), common)
  return _read([compiled], topology, work, common)


def fit_drawing(config: Config, topology: Topology, tell: Tell = print) -> Report:
  """Compiles the programs that draw a batch of images.

  Raises:
    ValueError: the configuration draws none, the mesh does not fit, or there is no compiler for the devices.
  """
  drawing.check(config)
  devices = find_devices(topology)
  if not devices:
    raise ValueError(
      f'--task=sample needs a compiler for {topology.name}: a TPU topology, or as many GPUs of this kind as are named.'
    )
  mesh = make_mesh(config, topology, devices)
  images = drawing.batch_size(config, mesh)
  common = {'mesh': dict(mesh.shape), 'settings': {'sampling.batch_size': images}}
  work = drawing.work(config, images)
  done: list[Compiled] = []

  def compiled(program: programs.Program) -> Any:
    tell(f'compiling {program.name} for {len(devices)} devices of {topology.name}')
    done.append(compile_program(program, mesh))
    return done[-1].executable

  program = programs.Program('drawing images', None, (), {})
  try:
    drawing.programs(config, mesh, compiled)
  except OutOfMemoryError as error:
    return _refused(program, topology, error, Estimate(0, 0, 0, work, topology, 'refused'), common)
  if topology.platform == 'gpu':
    raise ValueError('--task=sample estimates times for TPUs alone: tools/benchmark.py draw measures them on GPUs.')
  return dataclasses.replace(_read(done, topology, work, common), what='drawing a batch of images')


def settings_of(config: Config, stage: str) -> dict[str, Any]:
  """The keys that decide what fits, with their values."""
  training = training_of(config, stage)
  found = {
    f'{stage}_training.batch_size': training.batch_size,
    f'{stage}_training.accumulation_steps': training.accumulation_steps,
    f'{stage}_training.fusion_mib': training.fusion_mib,
  }
  if stage in ('prior', 'joint'):
    found['prior.remat'] = config.prior.remat
  if stage == 'sequence':
    found['model.remat'] = config.model.remat
  return found


def make_mesh(config: Config, topology: Topology, devices: list[Any]) -> Any:
  """The configuration's mesh over these devices, or without devices where there are none."""
  stand_ins = devices or [_StandIn(i) for i in range(topology.num_devices)]
  mesh = sharding.make_mesh(config.mesh, stand_ins, config)
  return mesh if devices else arithmetic.abstract_mesh(dict(mesh.shape))


@dataclasses.dataclass(frozen=True)
class _StandIn:
  """What the mesh is made of where there are no devices: hosts of eight."""

  id: int
  platform: str = 'gpu'

  @property
  def process_index(self) -> int:
    return self.id // 8


def _by_arithmetic(
  config: Config, stage: str, topology: Topology, mesh: Any, efficiency: float, common: dict[str, Any]
) -> Report:
  found = arithmetic.costs(config, stage)
  sizes = arithmetic.memory(config, stage, mesh, found.row_bytes)
  limit = topology.chip.memory
  return Report(
    what=f'training step of {stage}',
    memory_source='arithmetic from the shapes in the program; nothing was compiled',
    bytes_per_device=sizes,
    memory_limit=limit,
    fits=sum(sizes.values()) <= limit,
    estimate=arithmetic.estimate(config, stage, mesh, topology, found, efficiency),
    collectives=tuple(arithmetic.exchanged(config, stage, mesh)),
    **common,
  )


def _refused(
  program: programs.Program, topology: Topology, error: OutOfMemoryError, estimate: Estimate, common: dict[str, Any]
) -> Report:
  return Report(
    what=program.name,
    memory_source="the compiler's",
    bytes_per_device={'what the compiler needs': error.needed} if error.needed else {},
    memory_limit=error.limit or topology.chip.memory,
    fits=False,
    estimate=estimate,
    refusal=str(error),
    **common,
  )


def _read(done: list[Compiled], topology: Topology, work: programs.Work, common: dict[str, Any]) -> Report:
  """What the compiler of TPUs says of programs that run one after the other."""
  texts = [compiled.read() for compiled in done]
  cycles = sum(text.cycles for text in texts)
  clock, link = topology.chip.clock, topology.chip.link_bandwidth
  collectives = [collective for text in texts for collective in text.collectives()]
  exchanges = (
    f'are bytes over links of {link / 1e9:g} GB/s each way' if link else 'are left out, as links are not known'
  )
  source = (
    f"the compiler's estimate, {cycles / 1e6:,.1f} million cycles at {clock / 1e9:g} GHz; it has none for exchanges, "
    f'which {exchanges}'
  )
  estimate = Estimate(cycles / clock, *exchange_seconds(collectives, topology), work, topology, source)
  costs = sorted((cost for text in texts for cost in text.costs()), key=lambda cost: -cost.cycles)[:MOST_COSTS]
  rows = tuple(
    (cost.cycles, cost.count, f'{cost.instruction.name} {cost.instruction.shape[:60]}', cost.instruction.source)
    for cost in costs
  )
  return dataclasses.replace(_report(done, topology, estimate, collectives, common), costs=rows)


def _report(
  done: list[Compiled], topology: Topology, estimate: Estimate, collectives: list[Collective], common: dict[str, Any]
) -> Report:
  largest = max(done, key=lambda compiled: sum(compiled.bytes_per_device.values()))
  sizes = largest.bytes_per_device
  return Report(
    what=largest.program.name,
    memory_source="the compiler's, of the program for one device",
    bytes_per_device=sizes,
    memory_limit=topology.chip.memory,
    # The compiler of TPUs refuses what does not fit, and knows which temporaries are never there together.
    fits=topology.platform == 'tpu' or sum(sizes.values()) <= topology.chip.memory,
    peak_bytes=largest.peak_bytes,
    estimate=estimate,
    collectives=tuple(collectives),
    full_rematerialisations=tuple(line for compiled in done for line in compiled.complaints),
    warnings=tuple(dict.fromkeys(line for compiled in done for line in compiled.warnings)),
    text='\n'.join(compiled.text for compiled in done),
    compile_seconds=sum(compiled.seconds for compiled in done),
    **common,
  )
