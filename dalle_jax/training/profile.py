"""Profiler traces of chosen steps, for TensorBoard's profiler or Perfetto. Every host writes its own trace."""

from pathlib import Path

import jax


class Profiler:
  """Context manager around the steps of a run. `steps` holds the first and last step to trace; () traces none."""

  def __init__(self, directory: Path, steps: tuple[int, ...]) -> None:
    self.directory = Path(directory)
    self._first, self._last = steps or (0, -1)
    self._is_on = False

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *exc: object) -> None:
    self._stop()

  def before(self, step: int) -> None:
    """Start the trace if the coming `step` is within the traced steps. A resumed run may start late."""
    if self._first <= step <= self._last and not self._is_on:
      jax.profiler.start_trace(self.directory)
      self._is_on = True

  def after(self, step: int, results: object) -> bool:
    """After the last traced step, wait for `results` and end the trace; return whether it ended."""
    if not (self._is_on and step >= self._last):
      return False
    jax.block_until_ready(results)
    self._stop()
    return True

  def _stop(self) -> None:
    if self._is_on:
      self._is_on = False
      jax.profiler.stop_trace()
