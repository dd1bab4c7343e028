"""A thread that tells of a stalled step: what the loop was doing, for how long, and where every thread stands."""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

ACTIVITIES = ('compiling', 'waiting for data', 'step', 'evaluation', 'checkpoint', 'pictures')


class Watchdog:
  """Context manager that writes to stderr when no step has been finished for a while.

  A stall is told of once, and again each time that it has lasted twice as long. Nothing is ended: whether a slow
  compilation or a dead file system is the cause, the one who reads it knows better.

  The loop calls `tell` when it turns to something else. The clock starts anew when the step that it tells is another
  one; activities within a step share the time. So an evaluation or a checkpoint that takes longer than `seconds` is
  told of as well, with its name.
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
      name: of the stage.
      seconds: without a finished step that count as a stall; 0: nothing is watched.
      host: the number of this one.
      stream: where to write; by default what sys.stderr is then.
      clock: gives seconds.
    """
    self._name = name
    self._seconds = seconds
    self._host = host
    self._stream = stream
    self._clock = clock
    self._now_doing: tuple[str, int, float] = ('compiling', 0, clock())  # activity, step, since when; replaced whole
    self._step_since = clock()
    self._due = seconds  # how long a stall lasts when it is told of next
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

  def tell(self, activity: str, step: int) -> None:
    """Says what the loop does from now on.

    Args:
      activity: one of `ACTIVITIES`.
      step: the number of steps finished.
    """
    assert activity in ACTIVITIES, activity
    now = self._clock()
    with self._lock:
      if step != self._now_doing[1]:
        self._step_since, self._due = now, self._seconds
      self._now_doing = (activity, step, now)

  def check(self) -> bool:
    """Writes if it is time to; returns whether it did."""
    now = self._clock()
    with self._lock:
      stalled = now - self._step_since
      if not 0 < self._seconds or stalled < self._due:
        return False
      self._due = 2 * stalled
      activity, step, since = self._now_doing
    self._write(
      f'host {self._host}: {self._name}: no step has been finished for {stalled:.0f} s, after step {step}; doing: '
      f'{activity}, for {now - since:.0f} s. All threads:\n{stacks()}'
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
    except (AttributeError, OSError, ValueError):  # no stderr, a closed one: no reason to end a run
      pass


def stacks() -> str:
  """Where every thread of this process stands, the caller's left out.

  Of Python's frames, since a stream without a file number, as in notebooks, is nothing for `faulthandler`.
  """
  names = {thread.ident: thread.name for thread in threading.enumerate()}
  parts = []
  for ident, frame in sys._current_frames().items():
    if ident != threading.get_ident():
      parts.append(f'thread {names.get(ident, ident)}:\n' + ''.join(traceback.format_stack(frame)))
  return '\n'.join(parts)
