"""Predicted times of a step and of a whole run."""

import dataclasses
import math
from collections.abc import Sequence

from dalle_jax.planning.hlo import Collective
from dalle_jax.planning.programs import Work
from dalle_jax.planning.topologies import Topology

SECONDS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Predicted times of one step.

  Attributes:
    compute_seconds: time of the computation.
    exchange_seconds: time of the communication that blocks the computation.
    hidden_seconds: time of the communication that overlaps with the computation.
    work: what the step does.
    topology: the accelerators.
    source: a phrase that says how the computation's time was estimated.
  """

  compute_seconds: float
  exchange_seconds: float
  hidden_seconds: float
  work: Work
  topology: Topology
  source: str

  @property
  def step_seconds(self) -> float:
    """Time of one step. Overlapped communication only counts if it takes longer than the computation."""
    return max(self.compute_seconds, self.hidden_seconds) + self.exchange_seconds

  @property
  def model_flops_utilisation(self) -> float:
    """MFU: FLOPs of the model's matrix products per second, as a share of the devices' peak."""
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
  """Time of the communication of a step.

  The time of a collective is its bytes over the bandwidth. We assume that all links along the dimensions that its group
  spans are busy in both directions, and ignore latency.

  Args:
    collectives: the collectives of a step.
    topology: the accelerators.

  Returns:
    Seconds of the blocking collectives, and seconds of the overlapped ones.
  """
  blocking = hidden = 0.0
  for collective in collectives:
    seconds = collective.bytes / _bandwidth(collective.group, topology)
    blocking, hidden = (blocking, hidden + seconds) if collective.is_async else (blocking + seconds, hidden)
  return blocking, hidden


def _bandwidth(group: int, topology: Topology) -> float:
  """Bytes per second that each device of a group receives, for groups of `group` devices."""
  link = topology.chip.link_bandwidth
  if topology.platform == 'gpu':
    return link
  if not link:
    return math.inf
  dimensions, spanned = 0, 1
  # We assume that a group fills the torus along its longest dimensions first. A dimension that it fills only partly
  # counts in full.
  for size in sorted((size for size in topology.shape if size > 1), reverse=True):
    if spanned >= group:
      break
    dimensions, spanned = dimensions + 1, spanned * size
  return 2 * max(1, dimensions) * link
