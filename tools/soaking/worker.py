"""Runs trials in a process of its own, which is replaced when a trial hangs or ends it."""

import multiprocessing
import resource
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dalle_jax import boundary
from soaking.results import Outcome

PATIENCE_S = 60.0  # seconds that a trial may take
PREPARATION_S = 600.0  # seconds until the first trial starts: imports, loading, compiling
MOST_GROWTH = 3 << 29  # bytes by which a trial may raise the largest memory that the process has held
_MAX_RSS_UNIT = 1024  # bytes; the unit of ru_maxrss on Linux


class Worker:
  """A process that runs the trials of one kind of input."""

  def __init__(self, make_subject: Callable[[Path], Any], base: Path, seed: int):
    """
    Args:
      make_subject: Makes the kind of input from the directory of undamaged files; importable by name.
      base: The directory of undamaged files.
      seed: The campaign's seed.
    """
    self._arguments = (make_subject, base, seed)
    self._process: Any = None

  def run(self, trial: int) -> Outcome:
    """Runs a trial and says how it ended."""
    if self._process is None:
      self._start()
    self._pipe.send(trial)
    try:
      if self._pipe.poll(PATIENCE_S):
        return self._pipe.recv()
      outcome = Outcome('hang', f'no end after {PATIENCE_S:.0f} s')
    except EOFError:
      self._process.join(10)
      outcome = Outcome('traceback', f'the process ended with status {self._process.exitcode}')
    self.close()
    return outcome

  def _start(self) -> None:
    context = multiprocessing.get_context('spawn')
    self._pipe, other = context.Pipe()
    self._process = context.Process(target=_serve, args=(other, *self._arguments), daemon=True)
    self._process.start()
    other.close()
    if not self._pipe.poll(PREPARATION_S):
      raise TimeoutError(f'the worker was not ready after {PREPARATION_S:.0f} s')
    self._pipe.recv()

  def close(self) -> None:
    """Ends the process."""
    if self._process is not None:
      self._process.kill()
      self._process.join()
      self._process = None


def _serve(pipe: Any, make_subject: Callable[[Path], Any], base: Path, seed: int) -> None:
  subject = make_subject(base)
  pipe.send('ready')
  while True:
    trial = pipe.recv()
    with tempfile.TemporaryDirectory(prefix='soak_') as directory:
      before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      outcome = _outcome(subject, np.random.default_rng([seed, trial]), Path(directory))
      growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _MAX_RSS_UNIT
      if growth > MOST_GROWTH:
        outcome = Outcome('hang', f'took {growth / 2**30:.1f} GiB; {outcome.detail}')
    pipe.send(outcome)


def _outcome(subject: Any, rng: np.random.Generator, directory: Path) -> Outcome:
  try:
    return subject.trial(rng, directory)
  except Exception as error:
    message = None if isinstance(error, MemoryError) else boundary.explain(error)
    if message is not None:
      return Outcome('clean error', message)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return Outcome('traceback', f'{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})')
