"""What a measurement gives: a value, its standard error, and over how many things it was taken."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dalle_jax.evaluation.sequence_likelihood import mean_and_stderr


class Figure(NamedTuple):
  """One figure."""

  value: float
  stderr: float | None  # None: there is none, or it is not known
  count: int  # of pictures, captions, prompts or tokens


def mean(values: np.ndarray) -> Figure:
  """The mean of values [N], with its standard error where there are two or more."""
  value, stderr = mean_and_stderr(np.asarray(values, np.float64))
  return Figure(value, stderr if len(values) > 1 else None, len(values))


def share(values: np.ndarray) -> Figure:
  """The share of bool [N] that is true, with the binomial standard error."""
  value = float(np.mean(values))
  return Figure(value, math.sqrt(value * (1 - value) / len(values)), len(values))


def scaled(figure: Figure, factor: float) -> Figure:
  """In another unit."""
  return figure._replace(value=figure.value * factor, stderr=None if figure.stderr is None else figure.stderr * factor)


def from_flat(flat: Mapping[str, float], count: int) -> dict[str, Figure]:
  """Of flat figures in which '..._stderr' stands beside what it belongs to."""
  names = [name for name in flat if not name.endswith('_stderr')]
  return {name: Figure(flat[name], flat.get(f'{name}_stderr'), count) for name in names}
