"""Reads the text of a compiled program: what its collectives move, and what the compiler thinks its instructions cost.

Only what the program runs again and again is multiplied: loops by the times they run. A computation that is called
from several places counts for each of them.
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
_LOGGED = re.compile(r'^[IWE]\d{4} [\d:.]+ +\d+ \S+\] ')  # level, date, time, thread and place


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    name: without the percent sign.
    shape: the type of its result, as written.
    opcode: such as 'fusion'.
    rest: everything behind the opcode, operands first.
  """

  name: str
  shape: str
  opcode: str
  rest: str

  @property
  def cycles(self) -> int:
    """The compiler's estimate, of one pass; 0 where it makes none."""
    found = re.search(r'"estimated_cycles":"?(\d+)', self.rest)
    return int(found.group(1)) if found else 0

  @property
  def source(self) -> str:
    """What of the model it comes from; '' where the compiler added it."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found.group(1) if found else ''


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of collective with one size of group.

  Attributes:
    kind: one of COLLECTIVES.
    group: how many devices exchange with each other.
    is_async: whether other instructions run beside it.
    count: how often it runs in a step.
    bytes: what each device receives in a step, by a ring.
  """

  kind: str
  group: int
  is_async: bool
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """What an instruction costs in a step: `cycles` in all its `count` passes."""

  instruction: Instruction
  count: int
  cycles: int


class HloProgram:
  """A compiled program for one device.

  Args of the constructor: the text, and how often loops run whose bound the text does not tell.
  """

  def __init__(self, text: str, unknown_trips: int = 1) -> None:
    self.computations, self.entry = _computations(text)
    self._unknown_trips = unknown_trips

  @functools.cached_property
  def _passes(self) -> list[tuple[Instruction, int, str]]:
    """Every instruction, how often it runs, and what it is inside of that has its cost: an instruction and
    what it calls, or ''."""
    return list(self._walk(self.entry, 1, ''))

  def _walk(self, name: str, times: int, inside: str) -> Iterator[tuple[Instruction, int, str]]:
    for instruction in self.computations[name]:
      yield instruction, times, inside
      if instruction.opcode == 'while':
        body, condition = (_attribute(instruction.rest, key) for key in ('body', 'condition'))
        yield from self._walk(body, times * self.trips(instruction, condition), inside)
        continue
      is_own = instruction.opcode in ('call', 'conditional', 'async-start')
      for called in _called(instruction.rest):
        if called in self.computations:
          yield from self._walk(called, times, inside or ('' if is_own else f'{instruction.name} {called}'))

  def trips(self, instruction: Instruction, condition: str) -> int:
    """How often a loop runs: as its line says, or up to the constant that its condition compares with."""
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
    """The compiler's estimates of all instructions of a step together; it gives none to collectives."""
    return sum(cost.cycles for cost in self.costs())

  def costs(self) -> list[Cost]:
    """What each instruction costs that has an estimate, the dearest first."""
    counts: collections.Counter = collections.Counter()
    lines: dict[str, Instruction] = {}
    for line, times, inside in self._passes:
      if not inside and line.cycles:
        counts[line.name] += times
        lines[line.name] = line
    found = [Cost(lines[name], count, count * lines[name].cycles) for name, count in counts.items()]
    return sorted(found, key=lambda cost: -cost.cycles)

  def collectives(self) -> list[Collective]:
    """What devices exchange in a step, by kind and size of group, the most bytes first."""
    totals: dict[tuple[str, int, bool], list[int]] = {}
    for line, times, inside in self._passes:
      kind = line.opcode.removesuffix('-start')
      if kind not in COLLECTIVES or 'async_collective_fusion' in inside or inside.startswith('async-collective-done'):
        continue  # the start of one that goes on within products, and ends later, stands for it
      group = _group_size(line.rest)
      is_async = line.opcode.endswith('-start') or inside.startswith('async-collective-start')
      size = _received(kind, line, group)
      if kind == 'all-reduce' and ' all-reduce-scatter' in inside:
        kind, size = 'reduce-scatter', size // 2  # so written where each device keeps its part of the sum
      total = totals.setdefault((kind, group, is_async), [0, 0])
      total[0] += times
      total[1] += times * size
    found = [Collective(*key, count, size) for key, (count, size) in totals.items()]
    return sorted(found, key=lambda collective: -collective.bytes)


def full_rematerialisations(log: str) -> list[str]:
  """The partitioner's complaints, in what the compiler logged, that it had to copy a whole array to every device."""
  return [line.strip() for line in log.splitlines() if _FULL_REMATERIALISATION in line]


def warnings_of_options(log: str) -> list[str]:
  """What the compiler logged of options that it would rather not have been given, each once."""
  lines = [_LOGGED.sub('', line.strip()) for line in log.splitlines() if _AT_YOUR_OWN_RISK in line]
  return list(dict.fromkeys(lines))


def size_of(shape: str) -> list[int]:
  """Bytes of each array in a type, without the padding of its layout."""
  sizes = []
  for kind, dimensions in _SHAPE.findall(re.sub(r'\{[^}]*\}', '', shape)):
    bits = _BITS.get(kind, 8 if kind.startswith('f8') else 0)
    sizes.append(math.prod(int(size) for size in dimensions.split(',') if size) * bits // 8)
  return sizes


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
  found: dict[str, list[Instruction]] = {}
  entry, current = '', None
  for line in text.splitlines():
    header = _HEADER.match(line) if line and not line[0].isspace() else None
    if header:
      current = found.setdefault(header.group(2), [])
      entry = header.group(2) if header.group(1) else entry
    elif line.startswith('}'):
      current = None
    elif current is not None:
      instruction = _instruction(line)
      if instruction:
        current.append(instruction)
  if not entry:
    raise ValueError('The compiled program has no entry: its text is not that of HLO.')
  return found, entry


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
  """Where the parenthesis closes that the text begins with."""
  depth = 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if not depth:
      return i
  return len(text) - 1


def _attribute(rest: str, key: str) -> str:
  found = re.search(rf'\b{key}=%?([\w.\-]+)', rest)
  assert found, (key, rest[:200])
  return found.group(1)


def _called(rest: str) -> list[str]:
  """The computations that a line names, without those of loops."""
  behind = rest[_closing(rest) + 1 :]
  return [name.strip(' %') for group in _CALLED.findall(behind) for name in group.strip('{}').split(',')]


def _operands(rest: str) -> list[str]:
  return re.findall(r'%([\w.\-]+)', rest[: _closing(rest) + 1])


def _group_size(rest: str) -> int:
  """How many devices a collective joins: of groups listed, counted off, or named by axes of a mesh."""
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', rest)
  if listed:
    return len(listed.group(1).split(','))
  counted = re.search(r'replica_groups=\[(\d+),(\d+)\]', rest)
  if counted:
    return int(counted.group(2))
  # Between the axes' sizes and those that are meant, the order of the devices may stand.
  named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{('[^}]*)\}", rest)
  if named:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named.group(1))}
    parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named.group(2))
    return math.prod(int(part) if part else sizes[name] for name, part in parts)
  return 2 if 'source_target_pairs' in rest else 1


def _received(kind: str, line: Instruction, group: int) -> int:
  """Bytes that a device receives, by a ring."""
  sizes = size_of(line.shape)
  if line.opcode == 'all-gather-start':
    sizes = sizes[len(sizes) // 2 :]  # operands stand before results
  elif line.opcode == 'collective-permute-start':
    sizes = sizes[1:2]  # operand, result, and what keeps count
  total = sum(sizes)
  if kind == 'collective-permute':
    return total
  share = {'all-gather': 1, 'all-to-all': 1, 'all-reduce': 2, 'reduce-scatter': group}[kind]
  return total * share * (group - 1) // group
