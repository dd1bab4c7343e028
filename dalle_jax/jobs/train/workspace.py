"""The work directory of a run: its paths, its configuration, and the time spent in each stage over all restarts."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dalle_jax import hosts, stages
from dalle_jax.config import Config, difference
from dalle_jax.config.binding import fixed
from dalle_jax.config.overrides import groups_read
from dalle_jax.files import (
  check_array_path,
  check_path,
  finite_or_null,
  read_json_object,
  reason,
  replacing,
  write_json,
)  # fmt: skip
from dalle_jax.jobs import run_lock, seen_records, stored_json
from dalle_jax.jobs.run_lock import RunLock
from dalle_jax.jobs.stored_json import CHOICE, RECORDS, TOKENIZER_RECORD
from dalle_jax.training import metrics_log

_CONFIG, _SECONDS = 'config.json', 'seconds.json'
_REQUIRED = ('seed', 'data', 'tokenizer', 'dvae', 'prior')  # keys that every version has written to config.json


def check_workdir(path: str) -> Path:
  """The absolute path of --workdir.

  Raises:
    ValueError: A work directory cannot have this name.
  """
  if not path:
    raise ValueError('--workdir is empty; set it to a directory.')
  check_path(path, '--workdir')
  check_array_path(path, '--workdir')
  return Path(path).absolute()


def is_bare(path: Path) -> bool:
  """Whether a work directory has no results yet, for example because the first start failed on a mistyped path."""
  names = {file.name.removesuffix('.partial') for file in path.iterdir()}
  data = path / 'data'
  only_checks = data.is_dir() and [file.name for file in data.iterdir()] == ['checked']
  ignored = {_CONFIG, _SECONDS, TOKENIZER_RECORD, RECORDS, CHOICE, run_lock.FILE, seen_records.DIRECTORY}
  ignored |= {'data'} if only_checks else set()
  return {name for name in names if not name.startswith('.')} <= ignored


class Workspace:
  """The work directory of a run: its files, and a stopwatch for its stages."""

  def __init__(self, path: str, config: Config, lock: RunLock | None = None):
    """Creates the directory, or opens the directory of an earlier start.

    In a directory with results, nothing is written before `accept`, so that a refused start changes no file.

    Args:
      path: The value of --workdir.
      config: The experiment's configuration.
      lock: The lock of the directory, which every write confirms; None to write without one.

    Raises:
      ValueError: The directory cannot be written, holds a run with another configuration or damaged files, or differs
        between hosts.
    """
    self.path = check_workdir(path)
    if config.data.data_dir:
      check_path(config.data.data_dir, 'config.data.data_dir')
    self._lock = lock
    self._is_main = jax.process_index() == 0
    hosts.shared_directory(self.path)
    new = json.loads(json.dumps(config.to_dict()))
    with hosts.together(f'--workdir {self.path}'):
      self._check_config(new)
      self._seconds = self._read_seconds()
      self._check_metrics()
      if self._is_main:
        stored_json.check(self.path)
    self._config, self._is_accepted = new, is_bare(self.path) or not (self.path / _CONFIG).exists()
    with hosts.together(f'--workdir {self.path}'):
      if self._is_accepted:
        self._keep_config()

  def accept(self) -> None:
    """Writes the configuration and the times. Call it after the data and the tokenizer were compared."""
    self._is_accepted = True
    with hosts.together(f'--workdir {self.path}'):
      self._keep_config()
      if self._seconds:
        self.write(_SECONDS, self._seconds)

  @property
  def model(self) -> Path:
    """The path of the model directory."""
    return self.path / 'model'

  @property
  def tokenizer(self) -> Path:
    """The path of the tokenizer's file."""
    return self.path / 'tokenizer.model'

  def data(self, config: Config) -> Path:
    """The directory for generated data sets: config.data.data_dir, or WORKDIR/data."""
    return Path(config.data.data_dir).absolute() if config.data.data_dir else self.path / 'data'

  def _check_config(self, new: dict) -> None:
    """Raises ValueError if an earlier start had another configuration, except for keys that may change."""
    file = self.path / _CONFIG
    if not os.path.lexists(file):
      self._check_that_no_run_is_here()
      return
    old = read_json_object(file, self._advice())
    absent = [name for name in _REQUIRED if name not in old]
    wrong = [name for name, group in new.items() if isinstance(group, dict) and not isinstance(old.get(name, {}), dict)]
    if absent or wrong:
      problem = f'it lacks {", ".join(absent)}' if absent else f'{", ".join(wrong)} must be a group of keys'
      raise ValueError(f'{file} is damaged: {problem}. {self._advice()}')
    if not is_bare(self.path):
      groups = groups_read(Config.from_dict(new))
      lines = difference(fixed(_with_defaults(old), groups), fixed(new, groups))
      if lines:
        raise ValueError(
          f'--workdir {self.path} holds a run with another configuration. Set another --workdir, or go back to the old '
          'values (old -> new):\n  ' + '\n  '.join(lines)
        )

  def _check_that_no_run_is_here(self) -> None:
    """Raises ValueError if the directory holds results although it has no config.json."""
    results = [name for name in ('model', *stages.names()) if (self.path / name).is_dir()]
    results = [name for name in results if any((self.path / name).iterdir())]
    if results:
      raise ValueError(
        f'{self.path / _CONFIG} is missing, but --workdir {self.path} holds results of a run ({", ".join(results)}). '
        f'{self._advice()}'
      )

  def _advice(self) -> str:
    """What to do about a missing or damaged config.json."""
    copy = self.path / 'model' / _CONFIG
    if copy.exists():
      return f'Copy {copy} to {self.path / _CONFIG} to go on with this run, or set another --workdir.'
    return (
      f'Restore {self.path / _CONFIG} from a copy to go on with this run, set another --workdir, or empty this one to '
      'start over.'
    )

  def _read_seconds(self) -> dict[str, float]:
    file = self.path / _SECONDS
    if not os.path.lexists(file):
      return {}
    advice = 'Remove this file to go on; only the times of earlier starts are lost.'
    values = read_json_object(file, advice)
    seconds = {name: 0.0 if value is None else value for name, value in values.items()}  # null: not finite
    if not all(type(value) in (int, float) and 0 <= value < math.inf for value in seconds.values()):
      raise ValueError(f'{file} is damaged: its values must be numbers of seconds. {advice}')
    return seconds

  def _check_metrics(self) -> None:
    """Raises ValueError if a metrics file is damaged, which a run would otherwise only find at its end."""
    for stage in stages.names() if self._is_main else ():
      file = self.path / stage / metrics_log.FILE_NAME
      if file.exists():
        metrics_log.read_metrics(file)

  def _keep_config(self) -> None:
    try:
      self.write(_CONFIG, self._config)
    except OSError as error:
      raise ValueError(
        f'--workdir {self.path} cannot be made or written to: {reason(error, self.path / _CONFIG)}. Change its '
        'permissions, free some space, or name another directory with --workdir.'
      ) from None

  def confirm(self) -> None:
    """Makes sure that this run still holds the lock of the directory; call it before writing."""
    if self._lock is not None:
      self._lock.confirm()

  def write(self, name: str, values: dict) -> None:
    """Writes a JSON file atomically, on host 0 only.

    Numbers that are not finite become null, because JSON cannot represent them.
    """
    if not self._is_main:
      return
    self.confirm()
    write_json(self.path / name, finite_or_null(values))

  def keep_tokenizer(self, tokenizer: Any) -> None:
    """Saves a tokenizer atomically, on host 0 only."""
    if self._is_main:
      self.confirm()
      with replacing(self.tokenizer) as partial:
        tokenizer.save(partial)

  @contextlib.contextmanager
  def timed(self, stage: str) -> Iterator[None]:
    """Context manager that adds its duration to the stage's time, even if the body raises."""
    start = time.monotonic()
    try:
      yield
    finally:
      self._seconds[stage] = self._seconds.get(stage, 0.0) + time.monotonic() - start
      if self._is_accepted:
        self.write(_SECONDS, self._seconds)

  def seconds(self) -> dict[str, float]:
    """The scores 'seconds/STAGE' and 'seconds/total', summed over all restarts."""
    return {f'seconds/{stage}': value for stage, value in self._seconds.items()} | {
      'seconds/total': sum(self._seconds.values())
    }


def _with_defaults(values: dict) -> dict:
  """Fills in defaults for keys that are newer than the version that wrote the configuration."""
  try:
    return json.loads(json.dumps(Config.from_dict(values).to_dict()))
  except ValueError:
    return values


def print_scores(workdir: Path, scores: Mapping[str, float], names: Sequence[str]) -> None:
  """Prints the scores, and the paths of the files `names` in the work directory."""
  width = max(len(name) for name in scores)
  for name, value in scores.items():
    print(f'{name:<{width}}  {value:.4g}')
  print()
  for name in names:
    print(workdir / name)
  print(flush=True)
