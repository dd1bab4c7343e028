"""Predict whether a configuration fits into the memory of given accelerators, and how fast it runs.

The accelerators need not be attached to this machine.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from dalle_jax import sharding, stages
from dalle_jax.config import Config
from dalle_jax.planning import arithmetic, drawing, programs, topologies
from dalle_jax.planning.compile import Compiled, OutOfMemoryError, compile_program
from dalle_jax.planning.estimate import Estimate, exchange_seconds
from dalle_jax.planning.hlo import Collective
from dalle_jax.planning.report import MOST_COSTS, Report
from dalle_jax.planning.topologies import Topology
from dalle_jax.training import mesh_costs
from dalle_jax.training.stage_tasks import make_task, training_of

Log = Callable[[str], None]


def find_devices(topology: Topology) -> list[Any]:
  """The devices to compile for.

  For TPUs these are compile-only devices. For GPUs they are the attached devices, if this machine has as many of the
  kind as the topology names, and none otherwise.

  Raises:
    ValueError: libtpu is missing, has the wrong version, or does not know the shape.
  """
  if topology.platform == 'tpu':
    return topologies.devices(topology)
  attached = [device for device in jax.devices() if device.device_kind == topology.device_kind]
  return attached if len(attached) == topology.num_devices else []


def fit_training(config: Config, stage: str, topology: Topology, efficiency: float, log: Log = print) -> Report:
  """Predict memory and time of a stage's training step.

  This compiles the step. For GPUs that are not attached there is no compiler, so the report is arithmetic.

  Args:
    config: the experiment's configuration; open axes of its mesh are filled up to the devices of the topology.
    stage: the stage to train.
    topology: the accelerators.
    efficiency: throughput of the matrix products as a share of the peak. Only used for GPUs, because the compiler of
      TPUs estimates the time.
    log: gets progress messages.

  Raises:
    ValueError: the mesh or the batch size does not match the devices, or the compiler is missing.
  """
  devices = find_devices(topology)
  mesh: Any = make_mesh(config, topology, devices)
  training = training_of(config, stage)
  sharding.check_batch(training, mesh, f'{stage}_training')
  common = {'mesh': dict(mesh.shape), 'settings': settings_of(config, stage), 'num_steps': training.num_steps}
  if not devices:
    return _arithmetic_report(config, stage, topology, mesh, efficiency, common)
  for line in mesh_costs.lines(make_task(config, stage), training, config, mesh):
    log(line)
  program = programs.training_program(config, stage, mesh)
  work = programs.training_work(config, stage)
  log(f'compiling the {program.name} for {len(devices)} devices of {topology.name}')
  try:
    compiled = compile_program(program, mesh)
  except OutOfMemoryError as error:
    return _refusal_report(program, topology, error, Estimate(0, 0, 0, work, topology, 'refused'), common)
  if topology.platform == 'gpu':
    costs = arithmetic.trace_costs(config, stage)
    estimate = arithmetic.estimate(config, stage, mesh, topology, costs, efficiency)
    return _compiled_report([compiled], topology, estimate, arithmetic.collectives(config, stage, mesh), common)
  return _tpu_report([compiled], topology, work, common)


def fit_drawing(config: Config, topology: Topology, log: Log = print) -> Report:
  """Predict memory and time of drawing a batch of images, by compiling its programs.

  Args:
    config: the experiment's configuration; open axes of its mesh are filled up to the devices of the topology.
    topology: the accelerators.
    log: gets progress messages.

  Raises:
    ValueError: the configuration draws no images, the mesh does not match the devices, or there is no compiler for
      them.
  """
  drawing.check(config)
  devices = find_devices(topology)
  if not devices:
    raise ValueError(
      f'--topology={topology.name}: --task=sample needs a compiler for these devices, but this machine does not have '
      f'{topology.num_devices} such GPUs. Give a TPU topology, such as --topology=v5e-8.'
    )
  mesh = make_mesh(config, topology, devices)
  images = drawing.batch_size(config, mesh)
  common = {'mesh': dict(mesh.shape), 'settings': {'sampling.batch_size': images}}
  work = drawing.work(config, images)
  compiled_programs: list[Compiled] = []

  def compiled(program: programs.Program) -> Any:
    log(f'compiling {program.name} for {len(devices)} devices of {topology.name}')
    compiled_programs.append(compile_program(program, mesh))
    return compiled_programs[-1].executable

  program = programs.Program('drawing images', None, (), {})
  try:
    drawing.programs(config, mesh, compiled)
  except OutOfMemoryError as error:
    return _refusal_report(program, topology, error, Estimate(0, 0, 0, work, topology, 'refused'), common)
  if topology.platform == 'gpu':
    raise ValueError(
      f'--topology={topology.name} names GPUs; --task=sample estimates times only for TPUs. Measure them with '
      'tools/benchmark.py draw, or give a TPU topology, such as --topology=v5e-8.'
    )
  report = _tpu_report(compiled_programs, topology, work, common)
  return dataclasses.replace(report, program='drawing a batch of images')


def settings_of(config: Config, stage: str) -> dict[str, Any]:
  """The configuration keys that matter most for memory, with their values."""
  training, group = training_of(config, stage), stages.find(stage).training_group
  settings: dict[str, Any] = {
    f'{group}.batch_size': training.batch_size,
    f'{group}.accumulation_steps': training.accumulation_steps,
    f'{group}.fusion_mib': training.fusion_mib,
  }
  blocks = {'prior': config.prior, 'model': config.model}
  model_groups = stages.find(stage).model_groups
  return settings | {f'{name}.remat': blocks[name].remat for name in blocks if name in model_groups}


def make_mesh(config: Config, topology: Topology, devices: list[Any]) -> Any:
  """The configuration's mesh over the given devices, or an abstract mesh if the list is empty."""
  stand_ins = devices or [_StandIn(i) for i in range(topology.num_devices)]
  mesh = sharding.make_mesh(config.mesh, stand_ins, config)
  return mesh if devices else arithmetic.abstract_mesh(dict(mesh.shape))


@dataclasses.dataclass(frozen=True)
class _StandIn:
  """A placeholder for a GPU that is not attached, with eight devices per host."""

  id: int
  platform: str = 'gpu'

  @property
  def process_index(self) -> int:
    return self.id // 8


def _arithmetic_report(
  config: Config, stage: str, topology: Topology, mesh: Any, efficiency: float, common: dict[str, Any]
) -> Report:
  """The report of a training step on devices without a compiler here."""
  costs = arithmetic.trace_costs(config, stage)
  sizes = arithmetic.memory(config, stage, mesh, costs.row_bytes)
  limit = topology.chip.memory
  return Report(
    program=f'training step of {stage}',
    memory_source='arithmetic from the shapes in the program; nothing was compiled',
    bytes_per_device=sizes,
    memory_limit=limit,
    fits=sum(sizes.values()) <= limit,
    estimate=arithmetic.estimate(config, stage, mesh, topology, costs, efficiency),
    collectives=tuple(arithmetic.collectives(config, stage, mesh)),
    **common,
  )


def _refusal_report(
  program: programs.Program, topology: Topology, error: OutOfMemoryError, estimate: Estimate, common: dict[str, Any]
) -> Report:
  """The report of a program that the compiler refused because it does not fit."""
  return Report(
    program=program.name,
    memory_source='the compiler',
    bytes_per_device={'what the compiler needs': error.needed} if error.needed else {},
    memory_limit=error.limit or topology.chip.memory,
    fits=False,
    estimate=estimate,
    refusal=str(error),
    **common,
  )


def _tpu_report(
  compiled_programs: list[Compiled], topology: Topology, work: programs.Work, common: dict[str, Any]
) -> Report:
  """The report of programs that run one after the other on TPUs, whose compiler estimates the cycles."""
  hlo_programs = [compiled.read() for compiled in compiled_programs]
  cycles = sum(program.cycles for program in hlo_programs)
  clock, link = topology.chip.clock, topology.chip.link_bandwidth
  collectives = [collective for program in hlo_programs for collective in program.collectives()]
  communication = (
    f'bytes over links of {link / 1e9:g} GB/s each way' if link else 'left out, because the link bandwidth is unknown'
  )
  source = (
    f"the compiler's estimate of {cycles / 1e6:,.1f} million cycles at {clock / 1e9:g} GHz; "
    f'communication is {communication}'
  )
  estimate = Estimate(cycles / clock, *exchange_seconds(collectives, topology), work, topology, source)
  costs = sorted(
    (cost for program in hlo_programs for cost in program.costs()), key=lambda cost: -cost.cycles
  )[:MOST_COSTS]  # fmt: skip
  rows = tuple(
    (cost.cycles, cost.count, f'{cost.instruction.name} {cost.instruction.shape[:60]}', cost.instruction.source)
    for cost in costs
  )
  return dataclasses.replace(_compiled_report(compiled_programs, topology, estimate, collectives, common), costs=rows)


def _compiled_report(
  compiled_programs: list[Compiled],
  topology: Topology,
  estimate: Estimate,
  collectives: list[Collective],
  common: dict[str, Any],
) -> Report:
  """The report of compiled programs. The memory is that of the largest program."""
  largest = max(compiled_programs, key=lambda compiled: sum(compiled.bytes_per_device.values()))
  sizes = largest.bytes_per_device
  return Report(
    program=largest.program.name,
    memory_source='the compiler, for the program of one device',
    bytes_per_device=sizes,
    memory_limit=topology.chip.memory,
    # The compiler of TPUs refuses programs that do not fit. It knows which temporaries are alive at the same time, so
    # the sum of the sizes may exceed the memory of a program that it accepts.
    fits=topology.platform == 'tpu' or sum(sizes.values()) <= topology.chip.memory,
    peak_bytes=largest.peak_bytes,
    estimate=estimate,
    collectives=tuple(collectives),
    full_rematerialisations=tuple(line for compiled in compiled_programs for line in compiled.full_rematerialisations),
    warnings=tuple(dict.fromkeys(line for compiled in compiled_programs for line in compiled.warnings)),
    text='\n'.join(compiled.text for compiled in compiled_programs),
    compile_seconds=sum(compiled.seconds for compiled in compiled_programs),
    **common,
  )
