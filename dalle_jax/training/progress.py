"""Progress of long work on the console: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

BAR_WIDTH = 24
REFRESH_S = 0.2  # of the bar on a terminal


class Progress:
  """Shows done / total, the rate and the time left, on stderr.

  On a terminal one line is refreshed in place; elsewhere a whole line is written every `interval_s` seconds. The
  rate is measured from the first `update`, so that what comes before it (compilation) does not spoil the estimate.
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
    self._shown = ''  # the last line
    self._bar_length = 0  # characters of the bar now on the terminal's line

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def update(self, done: int, **metrics: float) -> None:
    """Says that `done` units are finished; metrics are shown behind and kept until given anew."""
    now = self._clock()
    self._first = self._first or (done, now)
    self._last = (done, now)
    self._metrics |= metrics
    if now - self._shown_at >= self._interval_s:
      self._show()

  def update_of(self, done: int, total: int) -> None:
    """`update`, for work whose size is only known once it has begun."""
    self._total = total
    self.update(done)

  def message(self, text: str) -> None:
    """Writes a line of its own above the bar."""
    if self._enabled:
      self._clear()
      self._stream.write(f'{self._name}: {text}\n')
      self._stream.flush()

  def close(self) -> None:
    """Shows the last state and ends the line; calling it twice is harmless."""
    if self._last is None:
      return
    self._show()
    if self._enabled and self._is_terminal:
      self._stream.write('\n')
      self._stream.flush()
    self._last, self._bar_length = None, 0

  def _show(self) -> None:
    if not self._enabled:
      return
    self._shown_at = self._last[1]
    line = self._line()
    if self._is_terminal:
      self._clear()
      self._bar_length = len(line)
    if self._is_terminal or line != self._shown:  # a log has no use for the same line again
      self._stream.write(line if self._is_terminal else line + '\n')
      self._stream.flush()
    self._shown = line

  def _clear(self) -> None:
    if self._bar_length:
      self._stream.write('\r' + ' ' * self._bar_length + '\r')
      self._bar_length = 0

  def _line(self) -> str:
    done, now = self._last
    parts = [f'{self._name}: {done}/{self._total} {self._unit}s']
    if self._is_terminal:
      filled = BAR_WIDTH * min(done, self._total) // max(1, self._total)
      parts[0] = f'{self._name} [{"=" * filled}{" " * (BAR_WIDTH - filled)}] {done}/{self._total} {self._unit}s'
    elapsed = now - self._first[1]
    rate = (done - self._first[0]) / elapsed if elapsed > 0 else 0.0
    if rate > 0:
      parts.append(f'{format_rate(rate, self._unit)}, {format_duration((self._total - done) / rate)} left')
    parts += [f'{name} {value:.4g}' for name, value in self._metrics.items()]
    return ', '.join(parts)


def format_rate(rate: float, unit: str) -> str:
  """'12.3 steps/s', or '4.0 s/step' where a unit takes more than a second."""
  return f'{rate:.1f} {unit}s/s' if rate >= 1 else f'{1 / rate:.1f} s/{unit}'


def format_duration(seconds: float) -> str:
  """'42s', '3m07s' or '5h02m'."""
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f'{seconds}s'
  if seconds < 3600:
    return f'{seconds // 60}m{seconds % 60:02d}s'
  return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'
