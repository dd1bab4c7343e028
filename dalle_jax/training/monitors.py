"""Context managers that watch a run: progress, watchdog, profiler and stop requests."""

import contextlib
from pathlib import Path
from typing import Any

import jax

from dalle_jax.training.profile import Profiler
from dalle_jax.training.progress import Progress
from dalle_jax.training.signals import StopSignals
from dalle_jax.training.watchdog import Watchdog


def open_monitors(
  stack: contextlib.ExitStack, name: str, num_steps: int, workdir: Path, stall_seconds: float, profile: tuple[int, ...]
) -> dict[str, Any]:
  """Enter the context managers, and return them by name: 'progress', 'watchdog', 'profiler' and 'stop'."""
  process = jax.process_index()
  return {
    'progress': stack.enter_context(Progress(name, num_steps, enabled=process == 0)),
    'watchdog': stack.enter_context(Watchdog(name, stall_seconds, process)),
    'profiler': stack.enter_context(Profiler(_process_directory(workdir / 'profile'), profile)),
    'stop': stack.enter_context(StopSignals(several_hosts=jax.process_count() > 1)),
  }


def _process_directory(directory: Path) -> Path:
  """This process's directory for traces: JAX names trace files by machine, which several processes may share."""
  return directory / f'host_{jax.process_index()}' if jax.process_count() > 1 else directory
