"""Writers of metrics: always a JSON-lines file; TensorBoard and Weights & Biases if configured."""

import contextlib
import importlib
import json
import math
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from dalle_jax.config import LoggingConfig
from dalle_jax.files import parse_json_object, write_whole

FILE_NAME = 'metrics.jsonl'


class MetricsWriter(Protocol):
  """The interface of all writers: takes named numbers for a step."""

  def write(self, step: int, values: dict[str, float]) -> None: ...

  def close(self) -> None: ...


class JsonlWriter:
  """Writes one JSON object per line: {"step", "time" (Unix seconds), name: value}. Non-finite values become null.

  Opening the file drops all lines after `resume_step`, because the run will repeat those steps.
  """

  def __init__(self, path: Path, resume_step: int = 0) -> None:
    _keep_lines_up_to(path, resume_step)
    self._file = path.open('a', encoding='utf-8')

  def write(self, step: int, values: dict[str, float]) -> None:
    numbers = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
    self._file.write(json.dumps({'step': step, 'time': round(time.time(), 3), **numbers}) + '\n')
    self._file.flush()

  def close(self) -> None:
    self._file.close()


class TensorBoardWriter:
  """Writes event files with tensorboardX, which does not need TensorFlow. Steps after `resume_step` are hidden."""

  def __init__(self, directory: Path, resume_step: int = 0) -> None:
    import tensorboardX

    self._writer = tensorboardX.SummaryWriter(str(directory), purge_step=resume_step + 1)

  def write(self, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


class WandbWriter:
  """Writes to Weights & Biases. The directory stores the run's id, so that a resumed run continues its curves.

  Raises:
    ValueError: wandb is not installed.
  """

  def __init__(self, directory: Path, project: str) -> None:
    try:
      wandb = importlib.import_module('wandb')
    except ImportError as error:
      raise ValueError(
        f'config.logging.wandb_project is {project!r}, but Weights & Biases is not installed: '
        "pip install 'dalle_jax[wandb]', or leave the key empty."
      ) from error
    id_file = directory / 'wandb_run_id'
    if not id_file.exists():
      id_file.write_text(uuid.uuid4().hex, encoding='utf-8')
    run_id = id_file.read_text(encoding='utf-8').strip()
    self._run = wandb.init(project=project, name=directory.name, dir=str(directory), id=run_id, resume='allow')

  def write(self, step: int, values: dict[str, float]) -> None:
    self._run.log(values, step=step)

  def close(self) -> None:
    self._run.finish()


class MultiWriter:
  """Passes everything on to zero or more writers."""

  def __init__(self, writers: Sequence[MetricsWriter]) -> None:
    self._writers = tuple(writers)

  def write(self, step: int, values: dict[str, float]) -> None:
    for writer in self._writers:
      writer.write(step, values)

  def close(self) -> None:
    for writer in self._writers:
      writer.close()


def make_writer(workdir: Path, logging: LoggingConfig, is_main_process: bool, resume_step: int = 0) -> MultiWriter:
  """Make the writers that the configuration asks for.

  Args:
    workdir: receives metrics.jsonl and tensorboard/; created if missing.
    logging: says which writers to make besides the JSON-lines file.
    is_main_process: if False, nothing is written.
    resume_step: step from which the run continues; metrics of later steps are dropped.
  """
  if not is_main_process:
    return MultiWriter([])
  workdir.mkdir(parents=True, exist_ok=True)
  writers: list[MetricsWriter] = []
  if logging.wandb_project:
    # First, because it may raise an error, and by then no file should have been opened or truncated.
    writers.append(WandbWriter(workdir, logging.wandb_project))
  writers.append(JsonlWriter(workdir / FILE_NAME, resume_step))
  if logging.tensorboard:
    writers.append(TensorBoardWriter(workdir / 'tensorboard', resume_step))
  return MultiWriter(writers)


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """Read a metrics file, one dictionary per line. A last line that a crash cut off is left out.

  Raises:
    ValueError: Another line is damaged. The message names it.
  """
  return [values for values, _ in _parsed_lines(path)]


def _keep_lines_up_to(path: Path, step: int) -> None:
  if not path.exists():
    return
  lines = [line for values, line in _parsed_lines(path) if values['step'] <= step]
  write_whole(path, ''.join(line + '\n' for line in lines).encode())


def _parsed_lines(path: Path) -> list[tuple[dict[str, Any], str]]:
  """The values and the text of each line. Only the last line may be cut off: it has no line break."""
  *lines, cut_line = path.read_bytes().split(b'\n')
  pairs = []
  for number, line in enumerate(lines, start=1):
    try:
      pairs += [(_parsed(line), line.decode())] if line.strip() else []
    except ValueError as error:
      raise ValueError(
        f'{path}, line {number} is damaged: {error}. Remove this line, or move the file away to go on without the '
        'metrics so far; checkpoints do not need them.'
      ) from None
  with contextlib.suppress(ValueError):
    pairs.append((_parsed(cut_line), cut_line.decode()))
  return pairs


def _parsed(line: bytes) -> dict[str, Any]:
  """The values of one line. Raises ValueError if it does not hold the metrics of a step."""
  values = parse_json_object(line, allow_nan=True)
  if type(values.get('step')) is not int or values['step'] < 0:
    raise ValueError('it has no step')
  if not all(value is None or type(value) in (int, float) for value in values.values()):
    raise ValueError('its values must be numbers')
  return values
