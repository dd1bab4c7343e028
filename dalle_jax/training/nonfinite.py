"""What is said where training becomes infinite or not a number."""

from collections.abc import Mapping, Sequence
from typing import Any

MOST_RECORDS = 8  # named in a message


class NonFiniteError(RuntimeError):
  """The loss, the gradient or the parameters became infinite or NaN; nothing of it was saved.

  Attributes:
    step: the first such step, where it is known.
  """

  def __init__(self, message: str, step: int | None = None) -> None:
    super().__init__(message)
    self.step = step


def shown_metrics(metrics: Mapping[str, Any]) -> str:
  """'grad_norm=nan, loss=nan', of the metrics of one step."""
  return ', '.join(f'{name}={float(value):g}' for name, value in sorted(metrics.items()))


def shown_records(records: Sequence[str]) -> str:
  """'a.png, b.png, ... and 3 more', of a batch."""
  more = len(records) - MOST_RECORDS
  return ', '.join(records[:MOST_RECORDS]) + (f' and {more} more' if more > 0 else '')
