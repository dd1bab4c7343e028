"""The results of a ladder of training runs: one JSON object a line, and which of them a law may be fitted to."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

FILE_NAME = 'results.jsonl'
STATUSES = ('finished', 'diverged', 'failed')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One training run: what it cost, and how well the model then predicted what it had not seen."""

  name: str
  status: str  # one of STATUSES
  seed: int
  config_hash: str
  overrides: dict[str, str]  # the keys in which the runs of a ladder differ
  num_params: int  # trained
  num_non_embedding: int  # of them, those outside of embeddings and output matrices
  tokens: int  # seen in training, with repetition
  flops: float  # of the matrix products of training
  loss: float | None  # held out, in `unit`; None where there is none
  unit: str  # such as 'nats per token'
  seconds: float  # of the training stage, compilation included

  def problem(self) -> str | None:
    """Why no law can be fitted to the run; None if one can."""
    if self.status != 'finished':
      return self.status
    if self.loss is None or not math.isfinite(self.loss):
      return f'its loss is {self.loss}'
    if self.loss <= 0:
      return f'its loss is {self.loss:g}, of which there is no logarithm'
    sizes = (self.num_non_embedding, self.tokens, self.flops)
    return None if min(sizes) > 0 else f'its parameters, tokens and FLOPs are {sizes}; all must be above 0'


def read(path: Path) -> tuple[list[Run], list[str]]:
  """The rows of a results file, of each name the last one; and a complaint for each line that cannot be read.

  Raises:
    ValueError: there is no such file, or it cannot be read at all.
  """
  try:
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
  except OSError as error:
    raise ValueError(f'{path} cannot be read: {error}; `scaling.py sweep --out={path.parent}` writes it.') from None
  runs, complaints = {}, []
  for number, line in enumerate(lines, start=1):
    try:
      run = _parse(line)
      runs[run.name] = run
    except ValueError as error:
      complaints.append(f'{path.name}, line {number} is damaged and left out: {error}')
  return list(runs.values()), complaints


def _parse(line: str) -> Run:
  values = json.loads(line)
  fields = {field.name: field.type for field in dataclasses.fields(Run)}
  if not isinstance(values, dict) or set(values) != set(fields):
    raise ValueError(f'its keys are not {", ".join(fields)}')
  for name, value in values.items():
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
      'name': isinstance(value, str) and bool(value),
      'status': value in STATUSES,
      'loss': value is None or is_number,
      'overrides': isinstance(value, dict),
    }.get(name, is_number if fields[name] in (int, float) else isinstance(value, str))
    if not fits:
      raise ValueError(f'{name} is {value!r}')
  return Run(**values)


def write(path: Path, runs: Iterable[Run]) -> None:
  """Replaces the file as a whole or not at all."""
  partial = path.with_name(path.name + '.partial')
  partial.write_text(''.join(json.dumps(dataclasses.asdict(run)) + '\n' for run in runs), encoding='utf-8')
  os.replace(partial, path)


def usable(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
  """The runs that laws can be fitted to, by rising compute; and a line for each that is left out.

  Raises:
    ValueError: losses of different units are mixed.
  """
  kept = [run for run in runs if run.problem() is None]
  units = sorted({run.unit for run in kept})
  if len(units) > 1:
    raise ValueError(f'The runs measure different things ({", ".join(units)}); fit each ladder by itself.')
  left_out = [f'{run.name} is left out: {run.problem()}.' for run in runs if run.problem()]
  return sorted(kept, key=lambda run: run.flops), left_out


def frontier(flops: np.ndarray, losses: np.ndarray) -> np.ndarray:
  """The compute-efficient runs, bool [N]: those than which no run of as little compute or less has a lower loss."""
  order = np.lexsort((losses, flops))
  best = np.minimum.accumulate(losses[order])
  mask = np.zeros(len(flops), bool)
  mask[order] = np.concatenate([[True], losses[order][1:] < best[:-1]])[: len(flops)]
  return mask
