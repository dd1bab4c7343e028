"""What was found, as lines to read and as JSON."""

import dataclasses
from typing import Any

from dalle_jax.hardware import GIB
from dalle_jax.planning.estimate import Estimate
from dalle_jax.planning.hlo import Collective

MOST_COSTS = 12


@dataclasses.dataclass(frozen=True)
class Report:
  """Whether a configuration fits, and what it takes.

  Attributes:
    what: the program, such as 'training step of prior'.
    mesh: sizes of its axes.
    settings: keys that decide what fits, with their values.
    memory_source: where the bytes come from, in words.
    bytes_per_device: by kind.
    peak_bytes: at most at one time, by the compiler; 0 where it does not say.
    memory_limit: bytes of a device; the compiler's own limit where it refused.
    fits: whether they do.
    estimate: times; all 0 where the program was refused.
    collectives: what devices exchange in a step.
    num_steps: of the whole run; 0 for drawing.
    full_rematerialisations: the partitioner's complaints.
    warnings: the compiler's, about its options.
    compile_seconds: 0 where nothing was compiled.
    costs: (cycles in a step, passes, instruction, part of the model), the dearest first.
    refusal: the compiler's words where it did not fit.
    text: of the compiled programs.
  """

  what: str
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
    """The same for `json`; bytes are a chip's, times are in seconds."""
    estimate, topology = self.estimate, self.estimate.topology
    work, chips = estimate.work, topology.devices_per_chip
    found: dict[str, Any] = {
      'program': self.what,
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
      return {**found, 'refusal': self.refusal}
    found |= {
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
      found |= {'num_steps': self.num_steps, 'days': days, 'chip_hours': hours}
    return found


def describe(report: Report, explain: bool = False) -> str:
  """The report in lines; with `explain` the dearest instructions too."""
  estimate, topology = report.estimate, report.estimate.topology
  chips = topology.devices_per_chip
  mesh = ', '.join(f'{name} {size}' for name, size in report.mesh.items())
  settings = ', '.join(f'{name}={value}' for name, value in report.settings.items())
  slices = f'{topology.slices} x ' if topology.slices > 1 else ''
  lines = [
    f'{report.what} on {slices}{topology.name}: {topology.num_chips} chips of {topology.chip.name}, mesh {mesh}',
    settings,
    f'parameters            {estimate.work.num_params:,}',
    f'memory                {report.memory_source}',
  ]
  sizes = report.bytes_per_device
  lines += [
    f'  {name:<28}{chips * size / GIB:9.2f} GiB per chip'
    for name, size in [*sizes.items(), *([('all together', report.total_bytes)] if sizes else [])]
  ]
  if report.peak_bytes:
    lines.append(f'  {"at one time, by the compiler":<28}{chips * report.peak_bytes / GIB:9.2f} GiB per chip')
  lines.append(f'  {"there are":<28}{chips * report.memory_limit / GIB:9.2f} GiB per chip')
  if report.refusal:
    return '\n'.join([*lines, f'DOES NOT FIT: {report.refusal}'])
  lines.append('fits' if report.fits else 'DOES NOT FIT')
  lines += _exchanged(report)
  lines += [
    f'model FLOPs per step  {estimate.work.model_flops:.4g}',
    f'time                  {estimate.source}',
    f'  computing                   {estimate.compute_seconds:9.3f} s',
    f'  exchanging, nothing beside  {estimate.exchange_seconds:9.3f} s',
    f'  exchanging beside computing {estimate.hidden_seconds:9.3f} s',
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
    lines.append(f'compiled in           {report.compile_seconds:.0f} s; nothing was run')
  lines += [f'warning: {line}' for line in (*report.full_rematerialisations, *report.warnings)]
  if explain:
    lines += ['million cycles in a step, passes, instruction, part of the model']
    lines += [f'{cycles / 1e6:10.2f} {count:6d} {name} {source}' for cycles, count, name, source in report.costs]
  return '\n'.join(lines)


def _exchanged(report: Report) -> list[str]:
  if not report.collectives:
    return ['exchanged             nothing']
  lines = ['exchanged             bytes that a device receives in a step']
  for found in report.collectives:
    how = 'beside computing' if found.is_async else 'nothing beside'
    lines.append(f'  {found.kind:<19} {found.bytes / 1e9:10.3f} GB in {found.count} among {found.group} each, {how}')
  return lines
