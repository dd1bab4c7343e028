"""Tries meshes, policies of rematerialisation and batches: arithmetic sorts them, the compiler judges the best."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from dalle_jax import sharding
from dalle_jax.config import Config, MeshConfig
from dalle_jax.config.models import BLOCK_CHOICES
from dalle_jax.hardware import GIB
from dalle_jax.mesh import factorings, heads_and_widths
from dalle_jax.planning import arithmetic, fit, programs
from dalle_jax.planning.report import Report
from dalle_jax.planning.topologies import Topology
from dalle_jax.training.stage_tasks import training_of

MOST_PARTS = 16  # into which a batch is cut
MOST_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One plan, and what arithmetic says of it."""

  config: Config
  seconds: float
  bytes_per_device: int


def search(
  config: Config,
  stage: str,
  topology: Topology,
  batch_sizes: Sequence[int],
  tries: int,
  efficiency: float,
  tell: fit.Tell,
) -> list[Report]:
  """The plans that fit, the fastest first, by examples a second.

  Args:
    config: of the experiment; its mesh, policy and accumulation are replaced.
    stage: what is trained.
    topology: the accelerators.
    batch_sizes: to try; none: the configuration's.
    tries: how many to compile.
    efficiency: of the peak, what matrix products reach, for the arithmetic.
    tell: takes lines about what is going on.
  """
  found = list(_candidates(config, stage, topology, batch_sizes, efficiency))
  possible = [one for one in found if one.bytes_per_device <= topology.chip.memory]
  tell(f'{len(found)} plans, of which {len(possible)} fit by arithmetic')
  possible.sort(key=lambda one: one.seconds / training_of(one.config, stage).batch_size)
  reports: list[Report] = []
  for number, one in enumerate(possible[:tries]):
    tell(f'{number + 1}/{min(tries, len(possible))}: {_name(one.config, stage)}')
    report = fit.fit_training(one.config, stage, topology, efficiency, tell)
    tell('  ' + row(report))
    reports += [report] if report.fits else []
  return sorted(reports, key=lambda report: -report.estimate.examples_per_second)[:MOST_SHOWN]


def _candidates(
  config: Config, stage: str, topology: Topology, batch_sizes: Sequence[int], efficiency: float
) -> Iterator[Candidate]:
  """Every plan that the devices divide, and what arithmetic says of it."""
  group = {'prior': 'prior', 'joint': 'prior', 'sequence': 'model'}.get(stage)
  policies = BLOCK_CHOICES['remat'] if group else (None,)
  sizes = batch_sizes or [training_of(config, stage).batch_size]
  for batch_size in sizes:
    own = _with_training(config, stage, batch_size=batch_size, accumulation_steps=1)
    work = programs.training_work(own, stage)
    for policy in policies:
      one = own
      if group:
        one = dataclasses.replace(own, **{group: dataclasses.replace(getattr(own, group), remat=policy)})
      yield from _on_meshes(one, stage, topology, efficiency, work)


def _on_meshes(
  config: Config, stage: str, topology: Topology, efficiency: float, work: programs.Work
) -> Iterator[Candidate]:
  costs = arithmetic.costs(config, stage, work)
  for mesh, parts in itertools.product(_meshes(config, topology), _powers(MOST_PARTS)):
    if work.examples % (parts * sharding.batch_divisor(mesh)):
      continue
    plan = _with_training(config, stage, accumulation_steps=parts)
    plan = dataclasses.replace(plan, mesh=MeshConfig(**dict(mesh.shape)))
    size = sum(arithmetic.memory(plan, stage, mesh, costs.row_bytes).values())
    seconds = arithmetic.estimate(plan, stage, mesh, topology, costs, efficiency).step_seconds
    yield Candidate(plan, seconds, size)


def _with_training(config: Config, stage: str, **values: int) -> Config:
  training = dataclasses.replace(training_of(config, stage), **values)
  return dataclasses.replace(config, **{f'{stage}_training': training})


def _meshes(config: Config, topology: Topology) -> Iterator[Any]:
  """Meshes that split heads and widths cleanly."""
  stacks = heads_and_widths(config)
  for sizes in factorings(topology.num_devices, topology.slices):
    *_, fsdp, tensor = sizes
    if not any(heads % tensor or width % fsdp for _, heads, _, width in stacks):
      yield arithmetic.abstract_mesh(dict(zip(sharding.AXES, sizes, strict=True)))


def _powers(most: int) -> list[int]:
  return [2**i for i in range(most.bit_length()) if 2**i <= most]


def _name(config: Config, stage: str) -> str:
  settings = ', '.join(f'{name}={value}' for name, value in fit.settings_of(config, stage).items())
  return f'mesh {dataclasses.asdict(config.mesh)}, {settings}'


def row(report: Report) -> str:
  """A plan in a line."""
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
  """The plans, a line each."""
  if not reports:
    return 'None of the plans that were tried fits.'
  return '\n'.join(
    [f'mesh ({" x ".join(sharding.AXES)}), memory per chip, step, model-FLOPs utilisation', *map(row, reports)]
  )
