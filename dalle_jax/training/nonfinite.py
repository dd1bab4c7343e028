"""The error and its messages for training that becomes infinite or NaN."""

from collections.abc import Mapping, Sequence
from typing import Any

MOST_RECORDS = 8  # most records that a message names


class NonFiniteError(RuntimeError):
  """The loss, the gradient or the parameters became infinite or NaN; that state was not saved.

  Attributes:
    problem: the message without the advice at its end.
    step: the first non-finite step.
  """

  def __init__(self, problem: str, advice: str, step: int) -> None:
    super().__init__(f'{problem} {advice}')
    self.problem, self.step = problem, step


def advice(policy: str, limit: int, group: str) -> str:
  """Advise the user what to change after a run has diverged.

  Args:
    policy: config.nonfinite; or 'infinite parameters' instead of 'skip' if the gradient was finite, as skipping cannot
      undo such an update.
    limit: config.max_nonfinite.
    group: configuration group of the stage, such as 'config.prior_training'.
  """
  remedy = (
    f'train in a new --workdir with a lower {group}.learning_rate (or muon_learning_rate) or clip_norm, or a longer '
    'warmup_steps'
  )
  if policy == 'stop':
    return (
      'The same command would continue from there and, unless the hardware was at fault, fail again at this step: '
      f'{remedy}; or set {group}.nonfinite to skip or rewind.'
    )
  if policy == 'infinite parameters':
    return f'The gradient was finite but the updated parameters were not, which skipping cannot undo: {remedy}.'
  excess = 'updates were skipped' if policy == 'skip' else 'batches would have to be excluded'
  return f'More than {group}.max_nonfinite={limit} {excess}: {remedy}; or raise that limit.'


def shown_metrics(metrics: Mapping[str, Any]) -> str:
  """Format the metrics of one step as 'grad_norm=nan, loss=nan'."""
  return ', '.join(f'{name}={float(value):g}' for name, value in sorted(metrics.items()))


def shown_records(names: Sequence[str], count: int) -> str:
  """Format `count` records as 'a.png, b.png and 3 more'; `names` holds the names of the first ones."""
  more = count - len(names)
  return ', '.join(names) + (f' and {more} more' if more > 0 else '')
