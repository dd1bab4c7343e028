"""The results of campaigns: one JSON line for each trial, in a file that a later start continues."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

OUTCOMES = ('clean error', 'right', 'silent wrong', 'traceback', 'hang')
FAILURES = OUTCOMES[2:]


class Outcome(NamedTuple):
  """How a trial ended.

  Attributes:
    name: One of OUTCOMES.
    detail: The error's message or the difference found, cut to 500 characters.
  """

  name: str
  detail: str = ''


class Results:
  """The trials that are done. A trial is known by its kind, its seed and its number."""

  def __init__(self, file: Path):
    self._file = file
    self.rows: list[dict[str, Any]] = []
    if file.exists():
      lines = file.read_text(encoding='utf-8').splitlines(keepends=True)
      whole = [line for line in lines if line.endswith('\n')]  # a killed start may have left half a line
      self.rows = [json.loads(line) for line in whole]
      if len(whole) < len(lines):
        file.write_text(''.join(whole), encoding='utf-8')
    self._done = {(row['kind'], row['seed'], row['trial']) for row in self.rows}

  def missing(self, kind: str, seed: int, count: int) -> list[int]:
    """The numbers of the trials below `count` that have no result."""
    return [trial for trial in range(count) if (kind, seed, trial) not in self._done]

  def add(self, kind: str, seed: int, trial: int, outcome: Outcome, tries: int = 1) -> None:
    """Stores a result.

    Args:
      kind: The kind of input, or 'kills'.
      seed: The campaign's seed.
      trial: The trial's number.
      outcome: How it ended.
      tries: What the trial counts for: 1 input, or the number of kills of one run.
    """
    row = {'kind': kind, 'seed': seed, 'trial': trial, 'outcome': outcome.name, 'tries': tries,
           'detail': outcome.detail[:500]}  # fmt: skip
    with self._file.open('a', encoding='utf-8') as file:
      file.write(json.dumps(row) + '\n')
    self.rows.append(row)
    self._done.add((kind, seed, trial))

  def table(self) -> str:
    """A Markdown table: a row for each kind of input, with the numbers of trials by outcome."""
    counts: dict[str, Counter[str]] = {}
    for row in self.rows:
      counts.setdefault(row['kind'], Counter())[row['outcome']] += row['tries']
    if len(counts) > 1:
      counts['all inputs'] = sum((count for kind, count in counts.items() if kind != 'kills'), Counter())
    lines = [f'| input | tried | {" | ".join(OUTCOMES)} |', f'|---|{"---:|" * (1 + len(OUTCOMES))}']
    for kind, count in counts.items():
      figures = [count.total(), *(count[name] for name in OUTCOMES)]
      lines.append(f'| {kind} | {" | ".join(f"{figure:,}" for figure in figures)} |')
    return '\n'.join(lines)

  def failures(self) -> list[dict[str, Any]]:
    """The rows of trials that ended with a wrong result, a traceback or a hang."""
    return [row for row in self.rows if row['outcome'] in FAILURES]
