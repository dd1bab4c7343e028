"""What is said where training becomes infinite or not a number."""

from collections.abc import Mapping, Sequence
from typing import Any

MOST_RECORDS = 8  # named in a message


class NonFiniteError(RuntimeError):
  """The loss, the gradient or the parameters became infinite or NaN; nothing of it was saved.

  Attributes:
    found: what was found, without the advice that the message ends with.
    step: the first such step.
  """

  def __init__(self, found: str, advice: str, step: int) -> None:
    super().__init__(f'{found} {advice}')
    self.found, self.step = found, step


def advice(policy: str, limit: int, group: str) -> str:
  """What to do where a run ends.

  Args:
    policy: config.nonfinite, or 'spoilt' where 'skip' could not help.
    limit: config.max_nonfinite.
    group: the configuration's, for messages.
  """
  recipe = (
    f'lower {group}.learning_rate (or muon_learning_rate) or clip_norm, or lengthen warmup_steps, in a new --workdir'
  )
  if policy == 'stop':
    return (
      'The same command would continue there and, where the cause is not the machine, end here again: '
      f'{recipe}; or set {group}.nonfinite to skip or rewind.'
    )
  if policy == 'spoilt':
    return f'Parameters became infinite though their gradient was not, which skipping cannot undo: {recipe}.'
  done = 'updates were skipped' if policy == 'skip' else 'batches would have to be passed over'
  return f'More than {group}.max_nonfinite={limit} {done}: {recipe}; or raise that limit.'


def shown_metrics(metrics: Mapping[str, Any]) -> str:
  """'grad_norm=nan, loss=nan', of the metrics of one step."""
  return ', '.join(f'{name}={float(value):g}' for name, value in sorted(metrics.items()))


def shown_records(names: Sequence[str], count: int) -> str:
  """'a.png, b.png, ... and 3 more', of the names of the first of `count` records."""
  more = count - len(names)
  return ', '.join(names) + (f' and {more} more' if more > 0 else '')
