"""A trace of chosen steps, for TensorBoard's profiler or Perfetto; every host writes its own part."""

from pathlib import Path

import jax


class Profiler:
  """Context manager around the steps of a run; `steps` are the first and the last to be traced, () for none."""

  def __init__(self, directory: Path, steps: tuple[int, ...]) -> None:
    self.directory = Path(directory)
    self._first, self._last = steps or (0, 0)
    self._is_on = False

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *exc: object) -> None:
    self._stop()

  def before(self, step: int) -> None:
    """Begins the trace if `step`, which comes now, is the first of it."""
    if step == self._first and not self._is_on:
      jax.profiler.start_trace(self.directory)
      self._is_on = True

  def after(self, step: int, results: object) -> bool:
    """Ends the trace if `step` is the last of it, having waited for `results`; True if it did."""
    if not (self._is_on and step >= self._last):
      return False
    jax.block_until_ready(results)
    self._stop()
    return True

  def _stop(self) -> None:
    if self._is_on:
      self._is_on = False
      jax.profiler.stop_trace()
