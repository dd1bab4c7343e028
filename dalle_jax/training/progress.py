"""Progress of long jobs on stderr: a bar on a terminal, one line per interval in a log file."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

BAR_WIDTH = 24
REFRESH_S = 0.2  # seconds between two refreshes of the bar on a terminal


class Progress:
  """Context manager that shows done / total, the rate and the time left.

  On a terminal it refreshes one line in place. Elsewhere it writes a new line every `interval_s` seconds. The rate is
  measured from the first `update`, so earlier work such as compilation does not distort the estimate.
  """

  def __init__(
    self,
    name: str,
    total: int,
    unit: str = 'step',
    *,
    interval_s: float = 30.0,
    enabled: bool = True,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self._name, self._total, self._unit = name, total, unit
    self._enabled, self._clock = enabled, clock
    self._stream = sys.stderr if stream is None else stream
    self._is_terminal = self._stream.isatty()
    self._interval_s = REFRESH_S if self._is_terminal else interval_s
    self._first: tuple[int, float] | None = None  # done and time at the first update
    self._last: tuple[int, float] | None = None
    self._shown_at = -float('inf')
    self._metrics: dict[str, float] = {}
    self._shown = ''  # the line shown last
    self._bar_length = 0  # length of the bar on the terminal's current line, in characters

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def update(self, done: int, **metrics: float) -> None:
    """Record that `done` units are finished. Each metric stays in the line until a later call replaces its value."""
    now = self._clock()
    self._first = self._first or (done, now)
    self._last = (done, now)
    self._metrics |= metrics
    if now - self._shown_at >= self._interval_s:
      self._show(done, now)

  def update_of(self, done: int, total: int) -> None:
    """Like `update`, for jobs that learn their total only while running."""
    self._total = total
    self.update(done)

  def message(self, text: str) -> None:
    """Write `text` as a separate line above the bar."""
    if self._enabled:
      self._clear()
      self._stream.write(f'{self._name}: {text}\n')
      self._stream.flush()

  def close(self) -> None:
    """Show the final state and end the line. Calling it again does nothing."""
    if self._last is None:
      return
    self._show(*self._last)
    if self._enabled and self._is_terminal:
      self._stream.write('\n')
      self._stream.flush()
    self._last, self._bar_length = None, 0

  def _show(self, done: int, now: float) -> None:
    if not self._enabled:
      return
    self._shown_at = now
    line = self._line(done, now)
    if self._is_terminal:
      self._clear()
      self._bar_length = len(line)
    if self._is_terminal or line != self._shown:  # do not repeat a line in a log
      self._stream.write(line if self._is_terminal else line + '\n')
      self._stream.flush()
    self._shown = line

  def _clear(self) -> None:
    if self._bar_length:
      self._stream.write('\r' + ' ' * self._bar_length + '\r')
      self._bar_length = 0

  def _line(self, done: int, now: float) -> str:
    parts = [f'{self._name}: {done}/{self._total} {self._unit}s']
    if self._is_terminal:
      filled = BAR_WIDTH * min(done, self._total) // max(1, self._total)
      parts[0] = f'{self._name} [{"=" * filled}{" " * (BAR_WIDTH - filled)}] {done}/{self._total} {self._unit}s'
    first_done, begin = self._first or (done, now)
    elapsed = now - begin
    rate = (done - first_done) / elapsed if elapsed > 0 else 0.0
    if rate > 0:
      parts.append(f'{format_rate(rate, self._unit)}, {format_duration((self._total - done) / rate)} left')
    parts += [f'{name} {value:.4g}' for name, value in self._metrics.items()]
    return ', '.join(parts)


def format_rate(rate: float, unit: str) -> str:
  """Format units per second as '12.3 steps/s', or as '4.0 s/step' if a unit takes more than a second."""
  return f'{rate:.1f} {unit}s/s' if rate >= 1 else f'{1 / rate:.1f} s/{unit}'


def format_duration(seconds: float) -> str:
  """Format seconds as '42s', '3m07s' or '5h02m'."""
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f'{seconds}s'
  if seconds < 3600:
    return f'{seconds // 60}m{seconds % 60:02d}s'
  return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'
