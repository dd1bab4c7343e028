"""Measure how the time between two log lines is spent."""

import contextlib
import time
from collections.abc import Callable, Iterator

OUTSIDE_STEPS = ('evaluation', 'checkpoint', 'pictures')  # activities that are not part of a training step


class IntervalClock:
  """Seconds per activity since the last reading. Time without an activity counts as training steps."""

  def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
    self._clock = clock
    self.restart(0)

  def restart(self, step: int) -> None:
    """Start a new interval at `step` and discard the time of the current one."""
    self._step, self._start = step, self._clock()
    self._spent = dict.fromkeys(('data', *OUTSIDE_STEPS), 0.0)

  @contextlib.contextmanager
  def spent_on(self, activity: str) -> Iterator[None]:
    """Count the time inside the `with` block as `activity`, even if the block raises."""
    start = self._clock()
    try:
      yield
    finally:
      self._spent[activity] += self._clock() - start

  def add(self, activity: str, seconds: float) -> None:
    self._spent[activity] += seconds

  def now(self) -> float:
    return self._clock()

  def take(self, step: int) -> tuple[dict[str, float], float]:
    """Read the interval that ends at `step`, and start a new one.

    Returns:
      Seconds by 'time/ACTIVITY', and steps per second, not counting the activities in `OUTSIDE_STEPS` (0 if the
      interval has no step or took no time).
    """
    steps, seconds = step - self._step, self._clock() - self._start
    spent = {f'time/{name}': value for name, value in self._spent.items()}
    stepping = seconds - sum(self._spent[name] for name in OUTSIDE_STEPS)
    spent['time/step'] = max(0.0, stepping - self._spent['data'])
    self.restart(step)
    return spent, steps / stepping if steps and stepping > 0 else 0.0
