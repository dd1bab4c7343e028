"""Accounts of data sources: what was found, what is used, and what is left out, with reasons, counts and examples."""

import dataclasses
import re

from dalle_jax.files import shown

NUM_EXAMPLES = 3
NUM_REASONS = 20  # reasons of each kind that are shown
_NAME_LENGTH, _REASON_LENGTH = 60, 160  # characters


@dataclasses.dataclass
class Tally:
  """How often something was met, and the names of the first examples."""

  reason: str  # as it was given first; see `Account`
  count: int = 0
  examples: list[str] = dataclasses.field(default_factory=list)

  def add(self, name: str, count: int = 1) -> None:
    self.count += count
    if name and len(self.examples) < NUM_EXAMPLES:
      self.examples.append(name)

  def __str__(self) -> str:
    names = ', '.join(shown(name, _NAME_LENGTH) for name in self.examples)
    more = ', ...' if self.count > len(self.examples) else ''
    return f'{self.count:,}: {shown(self.reason, _REASON_LENGTH)}' + (f' ({names}{more})' if names else '')


class Account:
  """Counts the items of a source. Each item that was found is either used or left out.

  Reasons that differ only in numbers are counted together.
  """

  def __init__(self, unit: str):
    """
    Args:
      unit: what is counted, in the plural, such as 'pictures'.
    """
    self.unit = unit
    self.used = 0
    self.left_out: dict[str, Tally] = {}
    self.notes: dict[str, Tally] = {}

  def leave_out(self, reason: str, name: str) -> None:
    """Count an item that is not used."""
    _tally(self.left_out, reason).add(name)

  def note(self, fact: str, name: str, count: int = 1) -> None:
    """Count something that is no item, such as a further caption, or a fact about an item that is used."""
    _tally(self.notes, fact).add(name, count)

  def include(self, other: 'Account') -> None:
    """Add the counts of another account."""
    self.used += other.used
    for own, tallies in ((self.left_out, other.left_out), (self.notes, other.notes)):
      for tally in tallies.values():
        total = _tally(own, tally.reason)
        total.count += tally.count
        total.examples += tally.examples[: NUM_EXAMPLES - len(total.examples)]

  @property
  def num_left_out(self) -> int:
    return sum(tally.count for tally in self.left_out.values())

  @property
  def found(self) -> int:
    """The number of items, used or not."""
    return self.used + self.num_left_out

  def lines(self) -> list[str]:
    """One line with the totals, then a line for each reason, the most frequent first."""
    lines = [f'{self.found:,} {self.unit} found, {self.used:,} used, {self.num_left_out:,} left out']
    for title, tallies in (('left out', self.left_out), ('note', self.notes)):
      ranked = sorted(tallies.values(), key=lambda tally: -tally.count)
      lines += [f'{title} {tally}' for tally in ranked[:NUM_REASONS]]
      if rest := ranked[NUM_REASONS:]:
        lines.append(f'{title} {sum(tally.count for tally in rest):,}: {len(rest)} further reasons')
    return lines

  def __str__(self) -> str:
    """The lines as one block, indented."""
    return '\n'.join(f'  {line}' for line in self.lines())


def _tally(tallies: dict[str, Tally], reason: str) -> Tally:
  return tallies.setdefault(re.sub(r'\d[\d,]*', 'N', reason), Tally(reason))
