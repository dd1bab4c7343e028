"""Ctrl-C and SIGTERM as a polite request: finish the step, save, stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75  # a program's exit status for "saved and stopped early"; EX_TEMPFAIL of sysexits.h: run it again


class Interrupted(Exception):
  """Work stopped on request after saving; the same command continues it."""


class StopSignals:
  """Context manager: SIGINT and SIGTERM set `stop_requested`; a second SIGINT raises KeyboardInterrupt at once.

  The former handlers come back on exit. Outside the main thread, where Python allows no handlers, it does nothing.
  """

  def __init__(self) -> None:
    self.stop_requested = False
    self._former: dict[int, Any] = {}

  def __enter__(self) -> 'StopSignals':
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._former[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exc: object) -> None:
    for number, handler in self._former.items():
      # None stands for a handler not set from Python, which cannot be put back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._former.clear()

  def _handle(self, number: int, frame: FrameType | None) -> None:
    if self.stop_requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.stop_requested = True


@contextlib.contextmanager
def terminations_as_interrupts() -> Iterator[None]:
  """SIGTERM raises KeyboardInterrupt inside, as Ctrl-C does, where no `StopSignals` is in force."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  former = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL if former is None else former)
