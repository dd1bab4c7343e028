"""The work directory: which experiment it belongs to, and the time spent on each stage over all its restarts."""

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
from dalle_jax.files import finite_or_null, replacing, write_json


class Workspace:
  """Paths of a run and its stopwatch.

  Raises:
    ValueError: the directory holds a run of another configuration, or is not the same for all hosts.
  """

  def __init__(self, path: str, config: Config):
    if not path:
      raise ValueError('--workdir is empty; name a directory.')
    if '://' in path:
      raise ValueError(
        f'--workdir {path} is not a path of this file system; mount the bucket, and give the mount point.'
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
    return self.path / 'model'

  @property
  def tokenizer(self) -> Path:
    return self.path / 'tokenizer.model'

  def data(self, config: Config) -> Path:
    return Path(config.data.data_dir).absolute() if config.data.data_dir else self.path / 'data'

  def _check_config(self, new: dict) -> None:
    old = self._read('config.json')
    if old and not self._is_bare():
      lines = difference(fixed(_with_defaults(old)), fixed(new))
      if lines:
        raise ValueError(
          f'--workdir {self.path} holds a run of another configuration; take another directory, or the same values:\n  '
          + '\n  '.join(lines)
        )

  def _keep_config(self, new: dict) -> None:
    try:
      self.write('config.json', new)
    except OSError as error:
      raise ValueError(f'--workdir {self.path} cannot be made or written to: {error}') from None

  def _is_bare(self) -> bool:
    """Whether nothing has been made here yet: a first start was refused, perhaps for a mistyped path."""
    return {file.name for file in self.path.iterdir()} <= {'config.json', 'seconds.json'}

  def _read(self, name: str) -> dict:
    file = self.path / name
    if not file.exists():
      return {}
    try:
      return json.loads(file.read_text())
    except (OSError, ValueError) as error:
      raise ValueError(f'{file} is damaged ({error}); remove it if this work directory is yours.') from None

  def write(self, name: str, values: dict) -> None:
    """Writes a JSON file as a whole or not at all; does nothing in other processes than the first.

    Numbers that are not finite, which JSON cannot say, become null.
    """
    if not self._is_main:
      return
    write_json(self.path / name, finite_or_null(values))

  def keep_tokenizer(self, tokenizer: Any) -> None:
    """Saves a tokenizer, as a whole or not at all; does nothing in other processes than the first."""
    if self._is_main:
      with replacing(self.tokenizer) as partial:
        tokenizer.save(partial)

  @contextlib.contextmanager
  def timed(self, stage: str) -> Iterator[None]:
    """Adds the time inside to the stage's, also when it ends with an exception."""
    start = time.monotonic()
    try:
      yield
    finally:
      self._seconds[stage] = self._seconds.get(stage, 0.0) + time.monotonic() - start
      self.write('seconds.json', self._seconds)

  def seconds(self) -> dict[str, float]:
    """Flat figures: seconds of each stage, and their total, over all restarts."""
    return {f'seconds/{stage}': value for stage, value in self._seconds.items()} | {
      'seconds/total': sum(self._seconds.values())
    }


def _with_defaults(values: dict) -> dict:
  """A configuration that an earlier version may have written, with the keys that have come since at their defaults."""
  try:
    return json.loads(json.dumps(Config.from_dict(values).to_dict()))
  except ValueError:
    return values


def print_scores(workdir: Path, scores: Mapping[str, float], names: Sequence[str]) -> None:
  """Prints scores, and where the files of those names are."""
  width = max(len(name) for name in scores)
  for name, value in scores.items():
    print(f'{name:<{width}}  {value:.4g}')
  print()
  for name in names:
    print(workdir / name)
  print(flush=True)
