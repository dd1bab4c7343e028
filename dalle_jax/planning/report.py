"""The report on a configuration's memory and time, as text and as JSON."""

import dataclasses
from typing import Any

from dalle_jax.hardware import GIB
from dalle_jax.planning.estimate import Estimate
from dalle_jax.planning.hlo import Collective

MOST_COSTS = 12


@dataclasses.dataclass(frozen=True)
class Report:
  """Whether a configuration fits, with its memory and time.

  Attributes:
    program: name of the program, such as 'training step of prior'.
    mesh: size of each mesh axis.
    settings: the configuration keys that matter most for memory, with their values.
    memory_source: a phrase that says where the bytes come from.
    bytes_per_device: memory by kind.
    memory_limit: memory of a device in bytes, or the compiler's own limit if it refused the program.
    fits: whether the program fits into the memory.
    estimate: times; all 0 if the compiler refused the program.
    collectives: the collectives of a step.
    num_steps: optimizer steps of the whole run; 0 for drawing.
    full_rematerialisations: the partitioner's warnings that it copies a whole array to every device.
    warnings: the compiler's warnings about its options.
    compile_seconds: compile time; 0 if nothing was compiled.
    costs: (cycles per step, passes, instruction, module of the model), most expensive first.
    peak_bytes: peak memory per device according to the compiler; 0 if it does not say.
    refusal: the compiler's message if it refused the program.
    text: HLO text of the compiled programs.
  """

  program: str
  mesh: dict[str, int]
  settings: dict[str, Any]
  memory_source: str
  bytes_per_device: dict[str, int]
  memory_limit: int
  fits: bool
  estimate: Estimate
  collectives: tuple[Collective, ...] = ()
  num_steps: int = 0
  full_rematerialisations: tuple[str, ...] = ()
  warnings: tuple[str, ...] = ()
  compile_seconds: float = 0.0
  costs: tuple[tuple[int, int, str, str], ...] = ()
  peak_bytes: int = 0
  refusal: str = ''
  text: str = dataclasses.field(default='', repr=False)

  @property
  def total_bytes(self) -> int:
    return sum(self.bytes_per_device.values())

  def to_dict(self) -> dict[str, Any]:
    """The report as a dict for `json`. Bytes are per chip (not per device), times in seconds."""
    estimate, topology = self.estimate, self.estimate.topology
    work, chips = estimate.work, topology.devices_per_chip
    fields: dict[str, Any] = {
      'program': self.program,
      'topology': topology.name,
      'slices': topology.slices,
      'chips': topology.num_chips,
      'devices': topology.num_devices,
      'mesh': self.mesh,
      'settings': self.settings,
      'fits': self.fits,
      'parameters': work.num_params,
      'bytes_per_chip': {name: chips * size for name, size in self.bytes_per_device.items()},
      'total_bytes_per_chip': chips * self.total_bytes,
      'peak_bytes_per_chip': chips * self.peak_bytes,
      'memory_per_chip': chips * self.memory_limit,
      'memory_source': self.memory_source,
      'model_flops': work.model_flops,
      'compile_seconds': self.compile_seconds,
      'full_rematerialisations': list(self.full_rematerialisations),
      'warnings': list(self.warnings),
    }
    if self.refusal:
      return {**fields, 'refusal': self.refusal}
    fields |= {
      'collectives': [dataclasses.asdict(collective) for collective in self.collectives],
      'time_source': estimate.source,
      'compute_seconds': estimate.compute_seconds,
      'exchange_seconds': estimate.exchange_seconds,
      'hidden_exchange_seconds': estimate.hidden_seconds,
      'step_seconds': estimate.step_seconds,
      'model_flops_utilisation': estimate.model_flops_utilisation,
      'tokens_per_second': estimate.tokens_per_second,
      'examples_per_second': estimate.examples_per_second,
    }
    if self.num_steps:
      days, hours = estimate.days(self.num_steps), estimate.chip_hours(self.num_steps)
      fields |= {'num_steps': self.num_steps, 'days': days, 'chip_hours': hours}
    return fields


def describe(report: Report, explain: bool = False) -> str:
  """The report as text; with `explain`, also the most expensive instructions."""
  estimate, topology = report.estimate, report.estimate.topology
  chips = topology.devices_per_chip
  mesh = ', '.join(f'{name} {size}' for name, size in report.mesh.items())
  settings = ', '.join(f'{name}={value}' for name, value in report.settings.items())
  slices = f'{topology.slices} x ' if topology.slices > 1 else ''
  lines = [
    f'{report.program} on {slices}{topology.name}: {topology.num_chips} chips of {topology.chip.name}, mesh {mesh}',
    settings,
    f'parameters            {estimate.work.num_params:,}',
    f'memory                {report.memory_source}',
  ]
  sizes = report.bytes_per_device
  lines += [
    f'  {name:<28}{chips * size / GIB:9.2f} GiB per chip'
    for name, size in [*sizes.items(), *([('total', report.total_bytes)] if sizes else [])]
  ]
  if report.peak_bytes:
    lines.append(f'  {"peak, by the compiler":<28}{chips * report.peak_bytes / GIB:9.2f} GiB per chip')
  lines.append(f'  {"available":<28}{chips * report.memory_limit / GIB:9.2f} GiB per chip')
  if report.refusal:
    return '\n'.join([*lines, f'DOES NOT FIT: {report.refusal}'])
  lines.append('fits' if report.fits else 'DOES NOT FIT')
  lines += _communication_lines(report)
  lines += [
    f'model FLOPs per step  {estimate.work.model_flops:.4g}',
    f'time                  {estimate.source}',
    f'  computation                 {estimate.compute_seconds:9.3f} s',
    f'  blocking communication      {estimate.exchange_seconds:9.3f} s',
    f'  overlapped communication    {estimate.hidden_seconds:9.3f} s',
    f'  step                        {estimate.step_seconds:9.3f} s',
    f'model-FLOPs utilisation {estimate.model_flops_utilisation:.1%} of {chips * topology.chip.peak_flops / 1e12:g} '
    'TFLOP/s per chip',
    f'tokens per second     {estimate.tokens_per_second:,.0f}, examples {estimate.examples_per_second:,.1f}',
  ]
  if report.num_steps:
    lines.append(
      f'{report.num_steps:,} steps         {estimate.days(report.num_steps):.1f} days, '
      f'{estimate.chip_hours(report.num_steps):,.0f} chip-hours'
    )
  if report.compile_seconds:
    lines.append(f'compile time          {report.compile_seconds:.0f} s; nothing was run')
  lines += [f'warning: {line}' for line in (*report.full_rematerialisations, *report.warnings)]
  if explain:
    lines += ['million cycles per step, passes, instruction, module of the model']
    lines += [f'{cycles / 1e6:10.2f} {count:6d} {name} {source}' for cycles, count, name, source in report.costs]
  return '\n'.join(lines)


def _communication_lines(report: Report) -> list[str]:
  if not report.collectives:
    return ['communication         none']
  lines = ['communication         bytes that each device receives per step']
  for collective in report.collectives:
    mode = 'overlapped' if collective.is_async else 'blocking'
    lines.append(
      f'  {collective.kind:<19} {collective.bytes / 1e9:10.3f} GB in {collective.count} calls among '
      f'{collective.group} devices, {mode}'
    )
  return lines
