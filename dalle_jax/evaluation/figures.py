"""A measured value with its standard error and sample count."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dalle_jax.evaluation.sequence_likelihood import mean_and_stderr


class Figure(NamedTuple):
  """A measured value."""

  value: float
  stderr: float | None  # standard error; None if unknown
  # The name is a key of stored results; it hides `tuple.count`, which nobody calls.
  count: int  # type: ignore[assignment]  # the number of images, captions, prompts or tokens measured


def mean(values: np.ndarray) -> Figure:
  """The mean of values [N]; the standard error is None if N is 1."""
  value, stderr = mean_and_stderr(np.asarray(values, np.float64))
  return Figure(value, stderr if len(values) > 1 else None, len(values))


def share(values: np.ndarray) -> Figure:
  """The share of True in values, bool [N], with the binomial standard error."""
  value = float(np.mean(values))
  return Figure(value, math.sqrt(value * (1 - value) / len(values)), len(values))


def scaled(figure: Figure, factor: float) -> Figure:
  """Convert a figure to another unit by multiplying value and standard error."""
  return figure._replace(value=figure.value * factor, stderr=None if figure.stderr is None else figure.stderr * factor)


def from_flat(flat: Mapping[str, float], count: int) -> dict[str, Figure]:
  """Make figures from flat metrics, where the standard error of 'x', if any, is 'x_stderr'."""
  names = [name for name in flat if not name.endswith('_stderr')]
  return {name: Figure(flat[name], flat.get(f'{name}_stderr'), count) for name in names}
