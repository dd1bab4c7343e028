"""Turn Ctrl-C and SIGTERM into a stop request: finish the step, save, stop."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# Exit status of a program that saved its work and stopped early: EX_TEMPFAIL in sysexits.h, meaning "run it again".
EXIT_INTERRUPTED = 75

# Numbers the calls to JAX's preemption service over the whole program. The service needs increasing numbers, and the
# step count restarts with every stage. All hosts make the same calls.
_calls = itertools.count(1)


class Interrupted(Exception):
  """The run stopped on request after saving; the same command continues it."""


class StopSignals:
  """Context manager in which SIGINT and SIGTERM request a stop; a second SIGINT raises KeyboardInterrupt at once.

  With several hosts, JAX handles SIGTERM: its preemption service notifies all hosts, and they agree on a step to stop
  at. SIGINT is passed on as SIGTERM. On exit the previous handlers are restored. Outside the main thread, where Python
  allows no signal handlers, this does nothing.
  """

  def __init__(self, several_hosts: bool = False) -> None:
    self.stop_requested = False
    self._several_hosts = several_hosts
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> 'StopSignals':
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT,) if self._several_hosts else (signal.SIGINT, signal.SIGTERM):
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exc: object) -> None:
    for number, handler in self._previous.items():
      # None stands for a handler that was not installed from Python; it cannot be restored.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._previous.clear()

  def must_stop(self, reached_preemption: Callable[[int], bool]) -> bool:
    """Return whether to stop after this step; all hosts get the same answer. Call it once per step.

    Args:
      reached_preemption: `Checkpoints.reached_preemption`.
    """
    return reached_preemption(next(_calls)) if self._several_hosts else self.stop_requested

  def _handle(self, number: int, frame: FrameType | None) -> None:
    if self.stop_requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.stop_requested = True
    if self._several_hosts:
      os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def terminations_as_interrupts(several_hosts: bool = False) -> Iterator[None]:
  """Context manager in which SIGTERM raises KeyboardInterrupt, as Ctrl-C does, unless a `StopSignals` is active.

  With several hosts, JAX handles SIGTERM (see `StopSignals`), and the next training step stops.
  """
  if several_hosts or threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
