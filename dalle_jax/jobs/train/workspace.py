"""The work directory of a run: its paths, its configuration, and the time spent in each stage over all restarts."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dalle_jax import hosts
from dalle_jax.config import Config, difference
from dalle_jax.config.binding import fixed
from dalle_jax.config.overrides import groups_read
from dalle_jax.files import finite_or_null, replacing, write_json


class Workspace:
  """The work directory of a run: its files, and a stopwatch for its stages."""

  def __init__(self, path: str, config: Config):
    """Creates the directory, or opens the directory of an earlier start.

    Args:
      path: The value of --workdir.
      config: The experiment's configuration.

    Raises:
      ValueError: The directory cannot be written, holds a run with another configuration, or differs between hosts.
    """
    if not path:
      raise ValueError('--workdir is empty; set it to a directory.')
    if '://' in path:
      raise ValueError(
        f'--workdir {path} is a URL; it must be a path in the file system. Mount the bucket, and set --workdir to a '
        'directory in the mounted file system.'
      )
    self.path = Path(path).absolute()
    self._is_main = jax.process_index() == 0
    hosts.shared_directory(self.path)
    new = json.loads(json.dumps(config.to_dict()))
    with hosts.together(f'--workdir {self.path}'):
      self._check_config(new)
    with hosts.together(f'--workdir {self.path}'):
      self._keep_config(new)
    self._seconds = self._read('seconds.json')

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
    old = self._read('config.json')
    if old and not self._is_bare():
      groups = groups_read(Config.from_dict(new))
      lines = difference(fixed(_with_defaults(old), groups), fixed(new, groups))
      if lines:
        raise ValueError(
          f'--workdir {self.path} holds a run with another configuration. Set another --workdir, or go back to the old '
          'values (old -> new):\n  ' + '\n  '.join(lines)
        )

  def _keep_config(self, new: dict) -> None:
    try:
      self.write('config.json', new)
    except OSError as error:
      raise ValueError(f'--workdir {self.path} cannot be made or written to: {error}') from None

  def _is_bare(self) -> bool:
    """Whether the directory has no results yet, for example because the first start failed on a mistyped path."""
    return {file.name for file in self.path.iterdir()} <= {'config.json', 'records.json', 'seconds.json'}

  def _read(self, name: str) -> dict:
    file = self.path / name
    if not file.exists():
      return {}
    try:
      return json.loads(file.read_text())
    except (OSError, ValueError) as error:
      raise ValueError(
        f'{file} is damaged ({error}). Remove this file if --workdir {self.path} is the right directory.'
      ) from None

  def write(self, name: str, values: dict) -> None:
    """Writes a JSON file atomically, on host 0 only.

    Numbers that are not finite become null, because JSON cannot represent them.
    """
    if not self._is_main:
      return
    write_json(self.path / name, finite_or_null(values))

  def keep_tokenizer(self, tokenizer: Any) -> None:
    """Saves a tokenizer atomically, on host 0 only."""
    if self._is_main:
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
      self.write('seconds.json', self._seconds)

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
