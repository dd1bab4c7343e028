"""Parser of the text of a compiled program: its collectives, and the compiler's cost estimates of its instructions.

The compiler estimates one execution of an instruction. We multiply costs inside a loop by its trip count. A computation
that is called from several places counts once per place.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

COLLECTIVES = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
_BITS = {'pred': 8, 'bf16': 16, **{f'{kind}{bits}': bits for kind in 'suf' for bits in (2, 4, 8, 16, 32, 64)}}
_SHAPE = re.compile(r'\b([a-z]+[0-9]*|f8e[0-9a-z]+)\[([0-9,]*)\]')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$')
_NAME = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = ')
_CALLED = re.compile(r'\b(?:calls|to_apply|branch_computations|true_computation|false_computation|called_computations)='
                     r'(\{[^}]*\}|%?[\w.\-]+)')  # fmt: skip
_FULL_REMATERIALISATION = 'Involuntary full rematerialization'
_AT_YOUR_OWN_RISK = 'at your own risk'
_LOG_PREFIX = re.compile(r'^[IWE]\d{4} [\d:.]+ +\d+ \S+\] ')  # level, date, time, thread, file and line


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction, that is, one line of a program.

  Attributes:
    name: its name, without the percent sign.
    shape: the type of its result, as written in the text.
    opcode: for example 'fusion'.
    rest: the text after the opcode; it starts with the operands.
  """

  name: str
  shape: str
  opcode: str
  rest: str

  @property
  def cycles(self) -> int:
    """The compiler's estimate for one execution; 0 if there is none."""
    match = re.search(r'"estimated_cycles":"?(\d+)', self.rest)
    return int(match.group(1)) if match else 0

  @property
  def source(self) -> str:
    """The module of the model that the instruction comes from; '' if the compiler added it."""
    match = re.search(r'op_name="([^"]*)"', self.rest)
    return match.group(1) if match else ''


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of a step that have the same kind and group size.

  Attributes:
    kind: one of COLLECTIVES.
    group: number of devices in a group that communicates.
    is_async: whether it overlaps with other instructions.
    count: number of executions per step.
    bytes: bytes that each device receives per step, if the group uses a ring algorithm.
  """

  kind: str
  group: int
  is_async: bool
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of an instruction in a step: `count` executions with `cycles` cycles in total."""

  instruction: Instruction
  count: int
  cycles: int


class HloProgram:
  """A compiled program for one device.

  Attributes:
    computations: the instructions of each computation, by name.
    entry: name of the computation that the program starts with.
  """

  def __init__(self, text: str, unknown_trips: int = 1) -> None:
    """Args:
    text: the HLO text of the program.
    unknown_trips: trip count of loops whose bound is not in the text.

    Raises:
      ValueError: the text has no entry computation.
    """
    self.computations, self.entry = _computations(text)
    self._unknown_trips = unknown_trips

  @functools.cached_property
  def _passes(self) -> list[tuple[Instruction, int, str]]:
    """All instructions as (instruction, number of executions, caller).

    For an instruction inside a fusion, the caller is 'NAME COMPUTATION': the name of the outermost fusion, whose cost
    includes the instruction, and the computation that this fusion calls. The same holds inside reductions. For all
    other instructions, the caller is ''.
    """
    return list(self._walk(self.entry, 1, ''))

  def _walk(self, name: str, times: int, caller: str) -> Iterator[tuple[Instruction, int, str]]:
    """Yield the entries of `_passes` for one computation, which runs `times` times inside `caller`."""
    for instruction in self.computations[name]:
      yield instruction, times, caller
      if instruction.opcode == 'while':
        body, condition = (_attribute(instruction.rest, key) for key in ('body', 'condition'))
        yield from self._walk(body, times * self.trips(instruction, condition), caller)
        continue
      has_separate_costs = instruction.opcode in ('call', 'conditional', 'async-start')
      for called in _called(instruction.rest):
        if called in self.computations:
          inner = caller or ('' if has_separate_costs else f'{instruction.name} {called}')
          yield from self._walk(called, times, inner)

  def trips(self, instruction: Instruction, condition: str) -> int:
    """The trip count of a loop: as its instruction says, else the one constant that its condition compares with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
    if known:
      return int(known.group(1))
    lines = self.computations[condition]
    compared = [line for line in lines if line.opcode == 'compare' and 'direction=LT' in line.rest]
    constants = {line.name: line.rest for line in lines if line.opcode == 'constant'}
    bounds = [constants[name] for line in compared for name in _operands(line.rest) if name in constants]
    number = re.match(r'\((\d+)\)', bounds[0]) if len(bounds) == 1 else None
    return int(number.group(1)) if number else self._unknown_trips

  @functools.cached_property
  def cycles(self) -> int:
    """The compiler's estimate for a step: the sum over all instructions. It has no estimates for collectives."""
    return sum(cost.cycles for cost in self.costs())

  def costs(self) -> list[Cost]:
    """The costs of all instructions that have an estimate, most expensive first."""
    counts: collections.Counter = collections.Counter()
    lines: dict[str, Instruction] = {}
    for line, times, caller in self._passes:
      if not caller and line.cycles:
        counts[line.name] += times
        lines[line.name] = line
    costs = [Cost(lines[name], count, count * lines[name].cycles) for name, count in counts.items()]
    return sorted(costs, key=lambda cost: -cost.cycles)

  def collectives(self) -> list[Collective]:
    """The collectives of a step, by kind and group size, most bytes first."""
    totals: dict[tuple[str, int, bool], list[int]] = {}
    for line, times, caller in self._passes:
      kind = line.opcode.removesuffix('-start')
      if kind not in COLLECTIVES or 'async_collective_fusion' in caller or caller.startswith('async-collective-done'):
        continue  # an asynchronous collective appears up to three times; we count its start
      group = _group_size(line.rest)
      is_async = line.opcode.endswith('-start') or caller.startswith('async-collective-start')
      size = _received(kind, line, group)
      if kind == 'all-reduce' and ' all-reduce-scatter' in caller:
        # The compiler writes a reduce-scatter as a fusion of an all-reduce and a slice.
        kind, size = 'reduce-scatter', size // 2
      total = totals.setdefault((kind, group, is_async), [0, 0])
      total[0] += times
      total[1] += times * size
    collectives = [Collective(*key, count, size) for key, (count, size) in totals.items()]
    return sorted(collectives, key=lambda collective: -collective.bytes)


def full_rematerialisations(log: str) -> list[str]:
  """The lines of the compiler's log which say that the partitioner copies a whole array to every device."""
  return [line.strip() for line in log.splitlines() if _FULL_REMATERIALISATION in line]


def warnings_of_options(log: str) -> list[str]:
  """The warnings about options in the compiler's log, without duplicates and without log prefixes."""
  lines = [_LOG_PREFIX.sub('', line.strip()) for line in log.splitlines() if _AT_YOUR_OWN_RISK in line]
  return list(dict.fromkeys(lines))


def array_sizes(shape: str) -> list[int]:
  """Bytes of each array in a type such as 'bf16[8,128]' or '(f32[4], s32[])', without the padding of its layout."""
  sizes = []
  for kind, dimensions in _SHAPE.findall(re.sub(r'\{[^}]*\}', '', shape)):
    bits = _BITS.get(kind, 8 if kind.startswith('f8') else 0)
    sizes.append(math.prod(int(size) for size in dimensions.split(',') if size) * bits // 8)
  return sizes


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Split the text into computations; returns their instructions by name, and the name of the entry."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = '', None
  for line in text.splitlines():
    header = _HEADER.match(line) if line and not line[0].isspace() else None
    if header:
      current = computations.setdefault(header.group(2), [])
      entry = header.group(2) if header.group(1) else entry
    elif line.startswith('}'):
      current = None
    elif current is not None:
      instruction = _instruction(line)
      if instruction:
        current.append(instruction)
  if not entry:
    raise ValueError('The compiled program has no entry computation; its text must be HLO.')
  return computations, entry


def _instruction(line: str) -> Instruction | None:
  name = _NAME.match(line)
  if not name:
    return None
  rest = line[name.end() :]
  end = _closing(rest) + 1 if rest.startswith('(') else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode, parenthesis, operands = rest.partition('(')
  return Instruction(name.group(1), shape, opcode, parenthesis + operands)


def _closing(text: str) -> int:
  """Index of the parenthesis that closes the one at the start of the text."""
  depth = 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if not depth:
      return i
  return len(text) - 1


def _attribute(rest: str, key: str) -> str:
  match = re.search(rf'\b{key}=%?([\w.\-]+)', rest)
  assert match, (key, rest[:200])
  return match.group(1)


def _called(rest: str) -> list[str]:
  """Names of the computations that an instruction calls, except for the body and condition of a loop."""
  attributes = rest[_closing(rest) + 1 :]
  return [name.strip(' %') for group in _CALLED.findall(attributes) for name in group.strip('{}').split(',')]


def _operands(rest: str) -> list[str]:
  return re.findall(r'%([\w.\-]+)', rest[: _closing(rest) + 1])


def _group_size(rest: str) -> int:
  """Number of devices per group of a collective, from a list of ids, a shape, or names of mesh axes."""
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', rest)
  if listed:
    return len(listed.group(1).split(','))
  counted = re.search(r'replica_groups=\[(\d+),(\d+)\]', rest)
  if counted:
    return int(counted.group(2))
  # The text has the sizes of all axes, then perhaps the order of the devices, then the axes of this collective.
  named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{('[^}]*)\}", rest)
  if named:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named.group(1))}
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named.group(2))
    # A collective over a sub-axis, such as 'b':(1)4, states its own size.
    return math.prod(int(size) if size else sizes[name] for name, size in axes)
  return 2 if 'source_target_pairs' in rest else 1


def _received(kind: str, line: Instruction, group: int) -> int:
  """Bytes that each device receives in one execution, if the group uses a ring algorithm."""
  sizes = array_sizes(line.shape)
  if line.opcode == 'all-gather-start':
    sizes = sizes[len(sizes) // 2 :]  # the type has the operands first, then the results
  elif line.opcode == 'collective-permute-start':
    sizes = sizes[1:2]  # the type has an operand, the result and semaphores
  total = sum(sizes)
  if kind == 'collective-permute':
    return total
  share = {'all-gather': 1, 'all-to-all': 1, 'all-reduce': 2, 'reduce-scatter': group}[kind]
  return total * share * (group - 1) // group
