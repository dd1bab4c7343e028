"""How long a step takes, from what the compiler says of it, and what follows for a whole run."""

import dataclasses
import math
from collections.abc import Sequence

from dalle_jax.planning.hlo import Collective
from dalle_jax.planning.programs import Work
from dalle_jax.planning.topologies import Topology

SECONDS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Predicted times.

  Attributes:
    compute_seconds: of one step, without what devices exchange.
    exchange_seconds: of what devices exchange while nothing else runs.
    hidden_seconds: of what they exchange beside the computation.
    work: of one step.
    topology: on which.
    source: where the computation's time comes from, in words.
  """

  compute_seconds: float
  exchange_seconds: float
  hidden_seconds: float
  work: Work
  topology: Topology
  source: str

  @property
  def step_seconds(self) -> float:
    """What runs beside the computation counts only where it takes longer than that."""
    return max(self.compute_seconds, self.hidden_seconds) + self.exchange_seconds

  @property
  def model_flops_utilisation(self) -> float:
    """The share of the devices' peak that the model's own matrix products take."""
    peak = self.topology.num_devices * self.topology.chip.peak_flops
    return self.work.model_flops / self.step_seconds / peak

  @property
  def tokens_per_second(self) -> float:
    return self.work.tokens / self.step_seconds

  @property
  def examples_per_second(self) -> float:
    return self.work.examples / self.step_seconds

  def days(self, num_steps: int) -> float:
    return num_steps * self.step_seconds / SECONDS_PER_DAY

  def chip_hours(self, num_steps: int) -> float:
    return num_steps * self.step_seconds / 3600 * self.topology.num_chips


def exchange_seconds(collectives: Sequence[Collective], topology: Topology) -> tuple[float, float]:
  """Seconds for what devices exchange: while nothing else runs, and beside other instructions.

  By bytes over bandwidth, all links of the dimensions busy in both directions that a group spans; no latency.
  """
  blocking = hidden = 0.0
  for collective in collectives:
    seconds = collective.bytes / _bandwidth(collective.group, topology)
    blocking, hidden = (blocking, hidden + seconds) if collective.is_async else (blocking + seconds, hidden)
  return blocking, hidden


def _bandwidth(group: int, topology: Topology) -> float:
  """Bytes a second that a device of a group receives."""
  link = topology.chip.link_bandwidth
  if topology.platform == 'gpu':
    return link
  if not link:
    return math.inf
  dimensions, reached = 0, 1
  # The mesh's last axes lie on the torus' longest ones; a group that needs part of one uses its links as well.
  for size in sorted((size for size in topology.shape if size > 1), reverse=True):
    if reached >= group:
      break
    dimensions, reached = dimensions + 1, reached * size
  return 2 * max(1, dimensions) * link
