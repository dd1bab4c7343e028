"""What choosing among candidates gains (section 2.6; figure 9c)."""

from collections.abc import Sequence

import numpy as np


def chosen(scores: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
  """The value of the best-scored of `count` candidates, averaged over disjoint groups of so many, float [P].

  Args:
    scores: [P, N]; more is better, and of equal ones the first is taken.
    values: [P, N], such as whether an image shows what was asked for.
    count: 1 to N; the last N modulo `count` candidates are not used.
  """
  num_prompts, number = scores.shape
  groups = number // count
  assert groups >= 1, (number, count)
  shape = (num_prompts, groups, count)
  best = scores[:, : groups * count].reshape(shape).argmax(axis=2)
  grouped = values[:, : groups * count].reshape(shape).astype(np.float64)
  return np.take_along_axis(grouped, best[..., None], axis=2)[..., 0].mean(axis=1)


def curve(scores: np.ndarray, values: np.ndarray, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Means over prompts of `chosen` for each of C counts, and their standard errors (0 of one prompt), [C] each."""
  means = [chosen(scores, values, count) for count in counts]
  errors = [each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else 0.0 for each in means]
  return np.array([each.mean() for each in means]), np.array(errors)


def powers_of_two(most: int) -> list[int]:
  """1, 2, 4, ... up to `most`."""
  return [1 << power for power in range(most.bit_length()) if 1 << power <= most]
