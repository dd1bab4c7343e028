"""Runs of the tiny main job that are killed again and again, at random moments and at random file operations.

A cycle is one run from its start to its end, with several kills. At its end, parameters, metrics and scores must be
those of the run without interruption.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from soaking import base as base_files
from soaking.results import Outcome

PATIENCE_S = 900.0  # seconds until a start that does not end is a hang
_STATUS_KILLED = -signal.SIGKILL
_KILL_AT, _DIRECTORY, _COUNT = 'SOAK_KILL_AT', 'SOAK_DIRECTORY', 'SOAK_COUNT'
_EVENTS = ('os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.link', 'os.symlink', 'os.truncate', 'os.utime')


class Killing:
  """The cycles of a campaign.

  Args:
    base: The directory of undamaged files, which has the run without interruption.
    directory: Where the runs are made.
  """

  def __init__(self, base: Path, directory: Path):
    self._base, self._directory = base, directory
    self._expected = base_files.learnt(base / base_files.PICTURE_RUN)
    start = time.monotonic()
    count = directory / 'operations.txt'
    reference = directory / 'reference'
    shutil.rmtree(reference, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    process = self._start(reference, {_KILL_AT: '0', _COUNT: str(count)})
    if process.wait() != 0:
      raise ValueError(f'the run without kills failed:\n{self._log(reference).read_text(encoding="utf-8")[-4000:]}')
    self._seconds, self._operations = time.monotonic() - start, int(count.read_text(encoding='utf-8'))
    if base_files.learnt(reference) != self._expected:
      raise ValueError('two runs without kills differ')
    shutil.rmtree(reference)
    print(f'a run takes {self._seconds:.1f} s and {self._operations} file operations', flush=True)

  def cycle(self, rng: np.random.Generator, name: str) -> tuple[int, Outcome]:
    """Kills a run several times, lets it end, and compares it.

    Args:
      rng: Chooses the moments.
      name: The run's name; its directory is kept if the outcome is not right.

    Returns:
      The number of kills, and the outcome.
    """
    workdir = self._directory / name
    shutil.rmtree(workdir, ignore_errors=True)
    kills = 0
    for _ in range(int(rng.integers(5, 13))):
      killed, outcome = self._killed_start(rng, workdir)
      kills += killed
      if outcome is not None:
        return max(kills, 1), outcome
      if not killed:
        break
    outcome = self._ended(self._start(workdir, {}), workdir) or self._compare(workdir)
    if outcome.name == 'right':
      shutil.rmtree(workdir)
      self._log(workdir).unlink()
    return max(kills, 1), outcome

  def _killed_start(self, rng: np.random.Generator, workdir: Path) -> tuple[int, Outcome | None]:
    """Starts the run and kills it; returns the number of kills (0 if it ended first) and what went wrong."""
    if rng.random() < 0.5:
      process = self._start(workdir, {_KILL_AT: str(int(rng.integers(1, self._operations + 1)))})
      outcome = self._ended(process, workdir)
      return int(process.returncode == _STATUS_KILLED), outcome
    process = self._start(workdir, {})
    try:
      process.wait(rng.uniform(0.2, 0.8) * self._seconds)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      return 1, None
    return 0, self._ended(process, workdir)

  def _start(self, workdir: Path, extra: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, '-m', 'soaking.killing', *base_files.training_arguments(workdir)]
    variables = base_files.environment(self._base / 'programs') | {_DIRECTORY: str(workdir)} | extra
    with self._log(workdir).open('a', encoding='utf-8') as log:
      root = Path(__file__).parents[2]
      return subprocess.Popen(command, env=variables, cwd=root, stdout=log, stderr=subprocess.STDOUT)

  def _log(self, workdir: Path) -> Path:
    return workdir.with_name(workdir.name + '.log')

  def _ended(self, process: subprocess.Popen, workdir: Path) -> Outcome | None:
    """Waits for the end of a start; None if it ended as it should, by itself or killed."""
    try:
      status = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
      process.kill()
      return Outcome('hang', f'a start had not ended after {PATIENCE_S:.0f} s')
    if status in (0, _STATUS_KILLED):
      return None
    text = self._log(workdir).read_text(encoding='utf-8', errors='replace')
    return Outcome('traceback' if 'Traceback' in text else 'clean error', f'status {status}: {text[-300:]}')

  def _compare(self, workdir: Path) -> Outcome:
    ended = base_files.learnt(workdir)
    different = [name for name, value in self._expected.items() if ended[name] != value]
    return (
      Outcome('silent wrong', f'{workdir.name} differs in {", ".join(different)}') if different else Outcome('right')
    )


def _watch_file_operations() -> None:
  """Counts the file operations in the work directory, and kills this process before the one that is asked for."""
  directory, limit, count = os.environ[_DIRECTORY], int(os.environ.get(_KILL_AT, '0')), 0

  def hook(event: str, arguments: tuple) -> None:
    nonlocal count
    if event == 'open':
      counts = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
      counts = event in _EVENTS
    if counts and isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(directory):
      count += 1
      if count == limit:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(hook)
  if _COUNT in os.environ:
    import atexit

    atexit.register(lambda: Path(os.environ[_COUNT]).write_text(str(count), encoding='utf-8'))


if __name__ == '__main__':
  import runpy

  _watch_file_operations()
  runpy.run_module('dalle_jax.train', run_name='__main__', alter_sys=True)
