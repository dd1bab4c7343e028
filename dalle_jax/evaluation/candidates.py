"""The gain from choosing the best of several candidates (section 2.6; figure 9c)."""

from collections.abc import Sequence

import numpy as np

from dalle_jax.evaluation import figures


def chosen(scores: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
  """The value of the best-scored candidate in a group of `count`, averaged over disjoint groups, float [P].

  Args:
    scores: [P, N], the scores of N candidates for each of P prompts. Higher is better; ties go to the first.
    values: [P, N], the candidates' values, such as whether an image shows what its prompt says.
    count: candidates in a group, 1 to N. The last N modulo `count` candidates are not used.
  """
  num_prompts, num_candidates = scores.shape
  groups = num_candidates // count
  assert groups >= 1, (num_candidates, count)
  shape = (num_prompts, groups, count)
  best = scores[:, : groups * count].reshape(shape).argmax(axis=2)
  grouped = values[:, : groups * count].reshape(shape).astype(np.float64)
  return np.take_along_axis(grouped, best[..., None], axis=2)[..., 0].mean(axis=1)


def curve(scores: np.ndarray, values: np.ndarray, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Average `chosen` over P prompts for each of C counts.

  The values must lie between 0 and 1. Candidates of a prompt are correlated, so the interval is that of an
  effective number of independent values, at least P (see `figures.effective_count`).

  Returns:
    Means [C], and the lower and upper ends [C] of their Wilson intervals of 95%.
  """
  rows = []
  for count in counts:
    by_prompt = chosen(scores, values, count)
    mean, groups = float(by_prompt.mean()), np.repeat(np.arange(len(by_prompt)), scores.shape[1] // count)
    independent = figures.effective_count(by_prompt[groups], groups.tolist())
    rows.append((mean, *figures.wilson(mean, independent)))
  return tuple(np.array(rows).T)


def powers_of_two(most: int) -> list[int]:
  """The powers of two 1, 2, 4, ... that are at most `most`."""
  return [1 << power for power in range(most.bit_length()) if 1 << power <= most]
