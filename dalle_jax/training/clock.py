"""Where the time between two log lines goes."""

import contextlib
import time
from collections.abc import Callable, Iterator

ASIDE = ('evaluation', 'checkpoint', 'pictures')  # other things than steps


class IntervalClock:
  """Seconds by activity since the last reading; what is in none of them is the steps'."""

  def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
    self._clock = clock
    self.restart(0)

  def restart(self, step: int) -> None:
    """Begins anew at `step`, as if all before had taken no time."""
    self._step, self._start = step, self._clock()
    self._spent = dict.fromkeys(('data', *ASIDE), 0.0)

  @contextlib.contextmanager
  def spent_on(self, activity: str) -> Iterator[None]:
    """Counts the time inside to an activity, also when it ends with an exception."""
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
    """Reads the clock at `step`, and begins anew.

    Returns:
      'time/ACTIVITY' in seconds, and steps per second without what was done aside (0: none was made).
    """
    steps, seconds = step - self._step, self._clock() - self._start
    spent = {f'time/{name}': value for name, value in self._spent.items()}
    stepping = seconds - sum(self._spent[name] for name in ASIDE)
    spent['time/step'] = max(0.0, stepping - self._spent['data'])
    self.restart(step)
    return spent, steps / stepping if steps and stepping > 0 else 0.0
