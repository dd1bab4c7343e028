"""Runs of the tiny main job that are killed again and again, at random moments and at random file operations.

A cycle is one run from its start to its end, with several kills. At its end, parameters, metrics and scores must be
those of the run without interruption.
"""

import contextlib
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import time
import types
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from soaking import base as base_files
from soaking.results import Outcome

PATIENCE_S = 900.0  # seconds until a start that does not end is a hang
_STATUS_KILLED = -signal.SIGKILL
# Packages that a start needs; importing them takes longer than all else, and is not what is tested.
_PRELOADED = ('dalle_jax.data.shapes.builder', 'dalle_jax.jobs.train.run', 'grain')
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
    os.environ.update(base_files.environment(base / 'programs'))
    self._context = multiprocessing.get_context('forkserver')
    self._context.set_forkserver_preload(['soaking.killing', *_PRELOADED])
    process = self._start(reference, count=count)
    process.join()
    if process.exitcode != 0:
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
    outcome = self._ended(self._start(workdir), workdir) or self._compare(workdir)
    if outcome.name == 'right':
      shutil.rmtree(workdir)
      self._log(workdir).unlink()
    return max(kills, 1), outcome

  def _killed_start(self, rng: np.random.Generator, workdir: Path) -> tuple[int, Outcome | None]:
    """Starts the run and kills it; returns the number of kills (0 if it ended first) and what went wrong."""
    if rng.random() < 0.5:
      process = self._start(workdir, limit=int(rng.integers(1, self._operations // 4)))
      outcome = self._ended(process, workdir)
      return int(process.exitcode == _STATUS_KILLED), outcome
    process = self._start(workdir)
    process.join(rng.uniform(0.02, 0.4) * self._seconds)
    if process.exitcode is None:
      process.kill()
      process.join()
      return 1, None
    return 0, self._ended(process, workdir)

  def _start(self, workdir: Path, limit: int = 0, count: Path | None = None) -> BaseProcess:
    """Starts the run in a process that has imported its packages already.

    Args:
      workdir: The work directory.
      limit: The number of the file operation before which the process is killed; 0 for none.
      count: A file for the number of file operations.
    """
    arguments = base_files.training_arguments(workdir)
    process = self._context.Process(target=_run, args=(arguments, workdir, self._log(workdir), limit, count))
    with _without_main():
      process.start()
    return process

  def _log(self, workdir: Path) -> Path:
    return workdir.with_name(workdir.name + '.log')

  def _ended(self, process: BaseProcess, workdir: Path) -> Outcome | None:
    """Waits for the end of a start; None if it ended as it should, by itself or killed."""
    process.join(PATIENCE_S)
    status = process.exitcode
    if status is None:
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


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
  """Keeps new processes from importing the program that is running, whose flags are not those of training."""
  main, sys.modules['__main__'] = sys.modules['__main__'], types.ModuleType('__main__')
  try:
    yield
  finally:
    sys.modules['__main__'] = main


def _run(arguments: list[str], workdir: Path, log: Path, limit: int, count: Path | None) -> None:
  """Runs `python -m dalle_jax.train` in this process, with its output in a file."""
  with log.open('a', encoding='utf-8') as output:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
  os.chdir(Path(__file__).parents[2])
  sys.argv = ['dalle_jax.train', *arguments]
  watch_file_operations(workdir, limit, count)
  runpy.run_module('dalle_jax.train', run_name='__main__')


def watch_file_operations(directory: Path, limit: int, count_file: Path | None) -> None:
  """Counts this process's file operations in a directory, and kills the process before number `limit`; 0: never."""
  own, count = str(directory), 0

  def hook(event: str, arguments: tuple) -> None:
    nonlocal count
    if event == 'open':
      counts = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
      counts = event in _EVENTS
    path = os.fspath(arguments[0]) if counts and isinstance(arguments[0], str | os.PathLike) else ''
    if path == own or path.startswith(own + os.sep):
      count += 1
      if count_file:
        count_file.write_text(str(count), encoding='utf-8')  # outside of the directory, so it does not count
      if count == limit:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(hook)
