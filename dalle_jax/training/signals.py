"""Ctrl-C and SIGTERM as a polite request: finish the step, save, stop."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75  # a program's exit status for "saved and stopped early"; EX_TEMPFAIL of sysexits.h: run it again

# Calls of JAX's service for preemptions over the whole program: it wants numbers that grow, and steps begin anew with
# every stage. All hosts make the same calls.
_calls = itertools.count(1)


class Interrupted(Exception):
  """Work stopped on request after saving; the same command continues it."""


class StopSignals:
  """Context manager: SIGINT and SIGTERM ask for a stop; a second SIGINT raises KeyboardInterrupt at once.

  With several hosts SIGTERM is left to JAX, whose service for preemptions tells all hosts of it and agrees with them on
  a step, and SIGINT is passed on as SIGTERM. The former handlers come back on exit. Outside the main thread, where
  Python allows no handlers, it does nothing.
  """

  def __init__(self, several_hosts: bool = False) -> None:
    self.stop_requested = False
    self._several_hosts = several_hosts
    self._former: dict[int, Any] = {}

  def __enter__(self) -> 'StopSignals':
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT,) if self._several_hosts else (signal.SIGINT, signal.SIGTERM):
        self._former[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exc: object) -> None:
    for number, handler in self._former.items():
      # None stands for a handler not set from Python, which cannot be put back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._former.clear()

  def must_stop(self, reached_preemption: Callable[[int], bool]) -> bool:
    """Whether to stop after this step: of several hosts all or none; called once a step.

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
  """SIGTERM raises KeyboardInterrupt inside, as Ctrl-C does, where no `StopSignals` is in force.

  With several hosts it is left to JAX, see `StopSignals`: the next training step stops.
  """
  if several_hosts or threading.current_thread() is not threading.main_thread():
    yield
    return
  former = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL if former is None else former)
