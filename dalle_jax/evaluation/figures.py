"""A measured value with its uncertainty and sample count."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dalle_jax.evaluation.sequence_likelihood import mean_and_stderr

Z = 1.959964  # quantile of the normal distribution for intervals of 95%


class Figure(NamedTuple):
  """A measured value."""

  value: float
  stderr: float | None  # standard error; None if unknown, and for shares, which have an interval instead
  # The name is a key of stored results; it hides `tuple.count`, which nobody calls.
  count: int  # type: ignore[assignment]  # the number of images, captions, prompts or tokens measured
  interval: tuple[float, float] | None = None  # 95% interval of a share


def mean(values: np.ndarray, groups: Sequence[Hashable] | None = None) -> Figure:
  """The mean of values [N] and its standard error.

  Args:
    values: the values [N].
    groups: labels [N]; values with equal labels may be correlated, such as those of images for one prompt. None means
      that all values are independent.

  Returns:
    The figure; its standard error is None if there are fewer than two values or groups.
  """
  values = np.asarray(values, np.float64)
  value, stderr = mean_and_stderr(values)
  if groups is None:
    return Figure(value, stderr, len(values))
  sums, _ = _by_group(values - value, groups)
  if len(sums) < 2:
    return Figure(value, None, len(values))
  return Figure(value, _stderr_of_groups(sums, len(values)), len(values))


def share(values: np.ndarray, groups: Sequence[Hashable] | None = None) -> Figure:
  """The share of True in values, bool [N], with its Wilson score interval.

  Args:
    values: bool [N].
    groups: labels [N] of values that may be correlated, as for `mean`. The interval is that of an effective
      number of independent values (see `effective_count`).
  """
  values = np.asarray(values, np.float64)
  value = float(np.mean(values))
  count = len(values) if groups is None else effective_count(values, groups)
  return Figure(value, None, len(values), wilson(value, count))


def wilson(value: float, count: float) -> tuple[float, float]:
  """The Wilson score interval of 95% for a share of `count` independent values (Wilson 1927).

  Unlike value +- 1.96 standard errors, it has a positive width at 0 and 1 and stays between them.
  """
  spread = Z**2 / count
  centre = (value + spread / 2) / (1 + spread)
  half_width = Z / (1 + spread) * math.sqrt(value * (1 - value) / count + spread / (4 * count))
  # The interval always contains the share, but for rounding.
  return max(min(centre - half_width, value), 0.0), min(max(centre + half_width, value), 1.0)


def effective_count(values: np.ndarray, groups: Sequence[Hashable]) -> float:
  """The number of independent values whose share varies as much as the share of N values in groups.

  The variance is that of a mean of groups. If it cannot be estimated because all values are equal, the values of a
  group count as one observation. The result lies between this extreme and N.
  """
  value, total = float(np.mean(values)), len(values)
  sums, sizes = _by_group(np.asarray(values, np.float64) - value, groups)
  least = total**2 / float(np.sum(sizes.astype(np.float64) ** 2))
  variance = _stderr_of_groups(sums, total) ** 2 if len(sums) > 1 else 0.0
  return min(max(value * (1 - value) / variance, least), total) if variance else least


def _by_group(values: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
  """The sum [G] and the number [G] of the values of each group."""
  numbers = {label: number for number, label in enumerate(dict.fromkeys(groups))}
  index = np.array([numbers[label] for label in groups])
  return np.bincount(index, values), np.bincount(index)


def _stderr_of_groups(sums: np.ndarray, total: int) -> float:
  """The standard error of a mean of `total` values from the sums [G] of each group's deviations from the mean."""
  return math.sqrt(len(sums) / (len(sums) - 1) * float(np.sum(sums**2))) / total


def flat(name: str, figure: Figure) -> dict[str, float]:
  """A figure as flat metrics: GROUP/NAME and, as far as they are known, GROUP_stderr/NAME or GROUP_low/NAME and
  GROUP_high/NAME, the ends of its interval."""
  group, slash, rest = name.partition('/')
  result = {name: figure.value}
  if figure.stderr is not None:
    result[f'{group}_stderr{slash}{rest}'] = figure.stderr
  if figure.interval is not None:
    result[f'{group}_low{slash}{rest}'], result[f'{group}_high{slash}{rest}'] = figure.interval
  return result


def scaled(figure: Figure, factor: float) -> Figure:
  """Convert a figure without an interval to another unit by multiplying value and standard error."""
  assert figure.interval is None
  return figure._replace(value=figure.value * factor, stderr=None if figure.stderr is None else figure.stderr * factor)


def from_flat(flat: Mapping[str, float], count: int) -> dict[str, Figure]:
  """Make figures from flat metrics, where the standard error of 'x', if any, is 'x_stderr'."""
  names = [name for name in flat if not name.endswith('_stderr')]
  return {name: Figure(flat[name], flat.get(f'{name}_stderr'), count) for name in names}
