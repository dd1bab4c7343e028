"""Search for the fastest training plan over meshes, rematerialisation policies, batch sizes and accumulation steps.

Arithmetic sorts all plans; the best ones are compiled.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from dalle_jax import sharding, stages
from dalle_jax.config import Config, MeshConfig
from dalle_jax.config.models import BLOCK_CHOICES
from dalle_jax.hardware import GIB
from dalle_jax.mesh import factorings, heads_and_widths
from dalle_jax.planning import arithmetic, fit, programs
from dalle_jax.planning.report import Report
from dalle_jax.planning.topologies import Topology
from dalle_jax.training.stage_tasks import training_of

MOST_ACCUMULATION_STEPS = 16
MOST_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One plan, with its costs by arithmetic."""

  config: Config
  seconds: float  # per step
  bytes_per_device: int


def search(
  config: Config,
  stage: str,
  topology: Topology,
  batch_sizes: Sequence[int],
  tries: int,
  efficiency: float,
  log: fit.Log,
) -> list[Report]:
  """Find the plans that fit, sorted by examples per second, fastest first.

  Args:
    config: the experiment's configuration. The search replaces its mesh, batch size, rematerialisation policy and
      accumulation steps.
    stage: the stage to train.
    topology: the accelerators.
    batch_sizes: batch sizes to try; if empty, only the configuration's.
    tries: number of plans to compile.
    efficiency: throughput of the matrix products as a share of the peak, for the arithmetic.
    log: gets progress messages.
  """
  candidates = list(_candidates(config, stage, topology, batch_sizes, efficiency))
  fitting = [candidate for candidate in candidates if candidate.bytes_per_device <= topology.chip.memory]
  log(f'{len(candidates)} plans; {len(fitting)} fit by arithmetic')
  fitting.sort(key=lambda candidate: candidate.seconds / training_of(candidate.config, stage).batch_size)
  reports: list[Report] = []
  for number, candidate in enumerate(fitting[:tries]):
    log(f'{number + 1}/{min(tries, len(fitting))}: {_name(candidate.config, stage)}')
    report = fit.fit_training(candidate.config, stage, topology, efficiency, log)
    log('  ' + row(report))
    reports += [report] if report.fits else []
  return sorted(reports, key=lambda report: -report.estimate.examples_per_second)[:MOST_SHOWN]


def _candidates(
  config: Config, stage: str, topology: Topology, batch_sizes: Sequence[int], efficiency: float
) -> Iterator[Candidate]:
  """Yield every plan whose mesh and accumulation steps divide the batch."""
  group = {'prior': 'prior', 'joint': 'prior', 'sequence': 'model'}.get(stage)
  policies = BLOCK_CHOICES['remat'] if group else (None,)
  sizes = batch_sizes or [training_of(config, stage).batch_size]
  for batch_size in sizes:
    with_batch = _with_training(config, stage, batch_size=batch_size, accumulation_steps=1)
    work = programs.training_work(with_batch, stage)
    for policy in policies:
      plan = with_batch
      if group:
        model = dataclasses.replace(getattr(with_batch, group), remat=policy)
        plan = dataclasses.replace(with_batch, **{group: model})
      yield from _on_meshes(plan, stage, topology, efficiency, work)


def _on_meshes(
  config: Config, stage: str, topology: Topology, efficiency: float, work: programs.Work
) -> Iterator[Candidate]:
  costs = arithmetic.trace_costs(config, stage, work)
  for mesh, steps in itertools.product(_meshes(config, topology), _powers_of_two(MOST_ACCUMULATION_STEPS)):
    if work.examples % (steps * sharding.batch_divisor(mesh)):
      continue
    plan = _with_training(config, stage, accumulation_steps=steps)
    plan = dataclasses.replace(plan, mesh=MeshConfig(**dict(mesh.shape)))
    size = sum(arithmetic.memory(plan, stage, mesh, costs.row_bytes).values())
    seconds = arithmetic.estimate(plan, stage, mesh, topology, costs, efficiency).step_seconds
    yield Candidate(plan, seconds, size)


def _with_training(config: Config, stage: str, **values: Any) -> Config:
  training = dataclasses.replace(training_of(config, stage), **values)
  groups: dict[str, Any] = {stages.find(stage).training_group: training}
  return dataclasses.replace(config, **groups)


def _meshes(config: Config, topology: Topology) -> Iterator[Any]:
  """Yield the meshes whose axes divide the model's heads and widths."""
  stacks = heads_and_widths(config)
  for sizes in factorings(topology.num_devices, topology.slices):
    *_, fsdp, tensor = sizes
    if not any(heads % tensor or width % fsdp for _, heads, _, width in stacks):
      yield arithmetic.abstract_mesh(dict(zip(sharding.AXES, sizes, strict=True)))


def _powers_of_two(most: int) -> list[int]:
  return [2**i for i in range(most.bit_length()) if 2**i <= most]


def _name(config: Config, stage: str) -> str:
  settings = ', '.join(f'{name}={value}' for name, value in fit.settings_of(config, stage).items())
  return f'mesh {dataclasses.asdict(config.mesh)}, {settings}'


def row(report: Report) -> str:
  """One line of text on a plan."""
  mesh = 'x'.join(map(str, report.mesh.values()))
  settings = ' '.join(f'{name.rpartition(".")[2]}={value}' for name, value in report.settings.items())
  memory = f'{report.total_bytes * report.estimate.topology.devices_per_chip / GIB:7.2f} GiB'
  if report.refusal:
    return f'{mesh:<14} {memory} does not fit'
  estimate = report.estimate
  return (
    f'{mesh:<14} {memory} {estimate.step_seconds:8.3f} s {estimate.model_flops_utilisation:6.1%} '
    f'{estimate.examples_per_second:10,.1f} examples/s  {settings}'
  )


def table(reports: Sequence[Report]) -> str:
  """The plans as text, one line each."""
  if not reports:
    return 'None of the plans that were tried fits. Try a larger --topology, smaller --batch_sizes or more --tries.'
  return '\n'.join(
    [f'mesh ({" x ".join(sharding.AXES)}), memory per chip, step, model-FLOPs utilisation', *map(row, reports)]
  )
