"""A thread that reports stalled training: the current activity, its duration and the stack of every thread."""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

ACTIVITIES = ('compiling', 'waiting for data', 'step', 'evaluation', 'checkpoint', 'pictures')


class Watchdog:
  """Context manager that writes to stderr when no step has finished for a while.

  It reports a stall once, and again each time the stall has lasted twice as long as at the last report. It never ends
  the run: the cause may be a slow compilation or a dead file system, and only the reader can tell.

  The loop calls `set_activity` whenever its activity changes. A new step number restarts the stall timer; activities
  within one step share it. So an evaluation or a checkpoint that takes longer than `seconds` is reported too.
  """

  def __init__(
    self,
    name: str,
    seconds: float,
    host: int = 0,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """
    Args:
      name: name of the stage.
      seconds: seconds without a finished step that count as a stall; 0 disables the watchdog.
      host: index of this host.
      stream: where to write; by default sys.stderr at the time of the report.
      clock: returns the time in seconds.
    """
    self._name = name
    self._seconds = seconds
    self._host = host
    self._stream = stream
    self._clock = clock
    self._current: tuple[str, int, float] = ('compiling', 0, clock())  # activity, step, start time in seconds
    self._step_since = clock()
    self._due = seconds  # length of the stall at which to report next
    self._lock = threading.Lock()
    self._ended = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> 'Watchdog':
    if self._seconds > 0:
      self._step_since = self._clock()
      self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
      self._thread.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._ended.set()
    if self._thread is not None:
      self._thread.join()
      self._thread = None

  def set_activity(self, activity: str, step: int) -> None:
    """Record what the loop does from now on.

    Args:
      activity: one of `ACTIVITIES`.
      step: number of finished steps.
    """
    assert activity in ACTIVITIES, activity
    now = self._clock()
    with self._lock:
      if step != self._current[1]:
        self._step_since, self._due = now, self._seconds
      self._current = (activity, step, now)

  def check(self) -> bool:
    """Write a report if one is due; return whether it was."""
    now = self._clock()
    with self._lock:
      stalled = now - self._step_since
      if not 0 < self._seconds or stalled < self._due:
        return False
      self._due = 2 * stalled
      activity, step, since = self._current
    self._write(
      f'host {self._host}: {self._name}: no step has finished for {stalled:.0f} s (last finished step: {step}). '
      f'Current activity: {activity}, for {now - since:.0f} s. Stacks of all threads:\n{stacks()}'
    )
    return True

  def _watch(self) -> None:
    while not self._ended.wait(self._seconds / 10):
      self.check()

  def _write(self, text: str) -> None:
    try:
      stream = sys.stderr if self._stream is None else self._stream
      stream.write(text + '\n')
      stream.flush()
    except (AttributeError, OSError, ValueError):  # stderr is missing or closed, which must not end the run
      pass


def stacks() -> str:
  """Stack traces of all threads of this process except the caller's.

  Built from Python frames, because `faulthandler` needs a stream with a file descriptor, which notebooks lack.
  """
  names = {thread.ident: thread.name for thread in threading.enumerate()}
  traces = []
  for ident, frame in sys._current_frames().items():
    if ident != threading.get_ident():
      traces.append(f'thread {names.get(ident, ident)}:\n' + ''.join(traceback.format_stack(frame)))
  return '\n'.join(traces)
