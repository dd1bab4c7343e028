"""Results of a ladder of training runs: read and write them as JSON lines, and select the runs that laws can use."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dalle_jax.files import parse_json_object, reason, write_whole

FILE_NAME = 'results.jsonl'
STATUSES = ('finished', 'diverged', 'failed')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """The cost and the held-out loss of one training run."""

  name: str
  status: str  # one of STATUSES
  seed: int
  config_hash: str
  overrides: dict[str, str]  # values of the configuration keys that differ between the runs of the ladder
  num_params: int  # trained parameters
  num_non_embedding: int  # trained parameters outside embeddings and output matrices
  tokens: int  # tokens seen in training, repetitions included
  flops: float  # FLOPs of the matrix products in training
  loss: float | None  # held-out loss in `unit`; None if there is none
  unit: str  # unit of the loss, such as 'nats per token'
  seconds: float  # duration of the training stage, compilation included

  def problem(self) -> str | None:
    """Why laws cannot use the run; None if they can."""
    if self.status != 'finished':
      return self.status
    if self.loss is None or not math.isfinite(self.loss):
      return f'its loss is {self.loss}'
    if self.loss <= 0:
      return f'its loss is {self.loss:g}; a scaling law needs a positive loss'
    sizes = (self.num_non_embedding, self.tokens, self.flops)
    return None if min(sizes) > 0 else f'its parameters, tokens and FLOPs are {sizes}; all must be above 0'


def read(path: Path) -> tuple[list[Run], list[str]]:
  """Read a results file.

  Returns:
    The runs, and a message for each damaged line. If a name occurs several times, its last line counts.

  Raises:
    ValueError: the file does not exist or cannot be read.
  """
  try:
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
  except OSError as error:
    raise ValueError(
      f'{path} cannot be read: {reason(error)}. Run `scaling.py sweep --out={path.parent}` to write it.'
    ) from None
  runs, complaints = {}, []
  for number, line in enumerate(lines, start=1):
    try:
      run = _parse(line)
      runs[run.name] = run
    except ValueError as error:
      complaints.append(f'{path.name}, line {number} is damaged and ignored: {error}')
  return list(runs.values()), complaints


def _parse(line: str) -> Run:
  values = parse_json_object(line.encode('utf-8', 'replace'))
  fields = {field.name: field.type for field in dataclasses.fields(Run)}
  if set(values) != set(fields):
    raise ValueError(f'its keys are not {", ".join(fields)}')
  for name, value in values.items():
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_valid = {
      'name': isinstance(value, str) and bool(value),
      'status': value in STATUSES,
      'loss': value is None or is_number,
      'overrides': isinstance(value, dict),
    }.get(name, is_number if fields[name] in (int, float) else isinstance(value, str))
    if not is_valid:
      raise ValueError(f'{name} has the invalid value {ascii(value)[:100]}')
  return Run(**values)


def write(path: Path, runs: Iterable[Run]) -> None:
  """Write a results file atomically."""
  write_whole(path, ''.join(json.dumps(dataclasses.asdict(run)) + '\n' for run in runs).encode())


def usable(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
  """Select the runs that laws can use.

  Returns:
    The selected runs, sorted by compute, and a message for each run that is left out.

  Raises:
    ValueError: the losses have different units.
  """
  selected = [run for run in runs if run.problem() is None]
  units = sorted({run.unit for run in selected})
  if len(units) > 1:
    raise ValueError(f'The runs measure different things ({", ".join(units)}); fit each ladder separately.')
  left_out = [f'{run.name} is left out: {run.problem()}.' for run in runs if run.problem()]
  return sorted(selected, key=lambda run: run.flops), left_out


def frontier(flops: np.ndarray, losses: np.ndarray) -> np.ndarray:
  """Mark the compute-efficient runs, bool [N]: no other run has a loss as low with as little compute.

  Of runs with equal compute and loss, one is marked.
  """
  order = np.lexsort((losses, flops))
  best = np.minimum.accumulate(losses[order])
  mask = np.zeros(len(flops), bool)
  mask[order] = np.concatenate([[True], losses[order][1:] < best[:-1]])[: len(flops)]
  return mask
