"""The time of a training step on the devices of this process, and whether it fits into their memory."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.planning import programs
from dalle_jax.planning.compile import Compiled, OutOfMemoryError, compile_program
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.stage_tasks import make_task, training_of
from dalle_jax.training.state import create_state

NUM_STEPS = 5  # that are timed; the same on all hosts, whatever their clocks say


class StepTime(NamedTuple):
  """A measured training step.

  Attributes:
    seconds: the median of some steps; None if the step does not fit into memory.
    needed: bytes for each device, by the compiler's count; None if it does not say.
  """

  seconds: float | None
  needed: int | None


def measure(
  config: Config, stage: str, mesh: Any, free: int | None, clock: Callable[[], float] = time.monotonic
) -> StepTime:
  """Compile the training step of a stage, and run it a few times on the devices of a mesh. All hosts call it together.

  Args:
    config: the configuration.
    stage: a stage that it trains.
    mesh: the devices.
    free: free bytes of each device, the same on all hosts; None if they are unknown.
    clock: returns seconds.
  """
  try:
    compiled = compile_program(programs.training_program(config, stage, mesh), mesh)
  except OutOfMemoryError as error:
    return StepTime(None, error.needed)
  needed = sum(compiled.bytes_per_device.values())
  if free is not None and needed > free:
    return StepTime(None, needed)
  try:
    return StepTime(statistics.median(_times(compiled, config, stage, mesh, clock)), needed)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return StepTime(None, needed)


def _times(compiled: Compiled, config: Config, stage: str, mesh: Any, clock: Callable[[], float]) -> list[float]:
  """The seconds of some steps on random parameters. A step before them is left out, because it starts slowly."""
  training, task = training_of(config, stage), make_task(config, stage)
  _, shapes = compiled.program.arguments
  with sharding.use_mesh(mesh):
    state = create_state(task, make_optimizer(training), mesh, config.seed, use_ema=training.ema_decay > 0)
    batch = jax.jit(
      lambda: {name: jnp.zeros(like.shape, like.dtype) for name, like in shapes.items()},
      out_shardings={name: like.sharding for name, like in shapes.items()},
    )()
    times = []
    for _ in range(NUM_STEPS + 1):
      begin = clock()
      state, _ = compiled.executable(state, batch)
      jax.block_until_ready(state)
      times.append(clock() - begin)
  return times[1:]
