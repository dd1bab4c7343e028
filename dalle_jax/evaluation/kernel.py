"""The kernel distance between two sets of features (KID; Binkowski et al. 2018): the squared maximum mean discrepancy
with the polynomial kernel (x . y / F + 1)^3. It is unbiased at any number of pictures, as the Fréchet distance is not,
and may come out below 0 where the sets are alike.
"""

import numpy as np

from dalle_jax.evaluation.figures import Figure

SUBSET = 1000  # pictures at most
GROUPS = 20  # of the jackknife, at most


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """[N, M] of features [N, F] and [M, F]."""
  return (x @ y.T / x.shape[1] + 1) ** 3


def distance(x: np.ndarray, y: np.ndarray, seed: int = 0, paired: bool = False) -> Figure:
  """The distance between features x [N, F] and y [M, F], N and M at least 4.

  Pictures are dealt at random into subsets of SUBSET at most, whose estimates are averaged. So none is compared with
  all others, and the estimates are independent. The standard error is that of a jackknife which leaves out, of each
  subset, one group of pictures after the other.

  Args:
    x: of one set.
    y: of the other.
    seed: of the dealing.
    paired: row i of both belongs together, as a picture and one drawn for its caption. They are not compared with each
      other then, or two sets of one distribution would come out below 0.
  """
  assert min(len(x), len(y)) >= 4 and (not paired or len(x) == len(y))
  rng = np.random.default_rng(seed)
  num_subsets = -(-min(len(x), len(y)) // SUBSET)
  order_x = rng.permutation(len(x))
  order_y = order_x if paired else rng.permutation(len(y))
  found = []
  for rows in zip(np.array_split(order_x, num_subsets), np.array_split(order_y, num_subsets), strict=True):
    pair = (np.asarray(part[of][:SUBSET], np.float64) for part, of in zip((x, y), rows, strict=True))
    found.append(_estimate(*pair, paired))
  values, variances = np.transpose(found)
  return Figure(float(values.mean()), float(np.sqrt(variances.sum()) / num_subsets), min(len(x), len(y)))


def _estimate(x: np.ndarray, y: np.ndarray, paired: bool) -> tuple[float, float]:
  """The unbiased estimate and its jackknifed variance."""
  groups = min(GROUPS, min(len(x), len(y)) // 2)
  sums = [_group_sums(x, x, groups, True), _group_sums(y, y, groups, True), _group_sums(x, y, groups, paired)]
  sizes_x, sizes_y = (np.diff(_bounds(len(part), groups)) for part in (x, y))

  def combine(totals: list[float], n: int, m: int) -> float:
    xx, yy, xy = totals
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * (m - 1 if paired else m))

  def without(values: np.ndarray, g: int) -> float:
    return values.sum() - values[g].sum() - values[:, g].sum() + values[g, g]

  value = combine([part.sum() for part in sums], len(x), len(y))
  left = [combine([without(part, g) for part in sums], len(x) - sizes_x[g], len(y) - sizes_y[g]) for g in range(groups)]
  return value, (groups - 1) * float(np.var(left))


def _bounds(count: int, groups: int) -> np.ndarray:
  return np.arange(groups + 1) * count // groups


def _group_sums(x: np.ndarray, y: np.ndarray, groups: int, apart: bool) -> np.ndarray:
  """Sums of the kernel over pairs of groups, [G, G]; `apart`: rows of one number are not compared."""
  values = kernel(x, y)
  if apart:
    np.fill_diagonal(values, 0)
  rows = np.add.reduceat(values, _bounds(len(x), groups)[:-1], axis=0)
  return np.add.reduceat(rows, _bounds(len(y), groups)[:-1], axis=1)
