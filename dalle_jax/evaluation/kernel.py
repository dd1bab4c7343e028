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


def distance(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Figure:
  """The distance between features x [N, F] and y [M, F], N and M at least 4.

  Pictures are dealt at random into subsets of SUBSET at most, whose estimates are averaged. So none is compared with
  all others, and the estimates are independent. The standard error is that of a jackknife which leaves out, of each
  subset, one group of pictures after the other.

  Args:
    x: of one set.
    y: of the other.
    seed: of the dealing.
  """
  assert min(len(x), len(y)) >= 4
  rng = np.random.default_rng(seed)
  num_subsets = -(-min(len(x), len(y)) // SUBSET)
  found = []
  for rows in zip(*(np.array_split(rng.permutation(len(part)), num_subsets) for part in (x, y)), strict=True):
    pair = (np.asarray(part[of][:SUBSET], np.float64) for part, of in zip((x, y), rows, strict=True))
    found.append(_estimate(*pair))
  values, variances = np.transpose(found)
  return Figure(float(values.mean()), float(np.sqrt(variances.sum()) / num_subsets), min(len(x), len(y)))


def _estimate(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """The unbiased estimate and its jackknifed variance."""
  groups = min(GROUPS, min(len(x), len(y)) // 2)
  sums_xx, sums_yy = _group_sums(x, x, groups), _group_sums(y, y, groups)
  sums_xy = _group_sums(x, y, groups)
  sizes_x, sizes_y = (np.diff(_bounds(len(part), groups)) for part in (x, y))

  def without(sums: np.ndarray, g: int) -> float:
    return sums.sum() - sums[g].sum() - sums[:, g].sum() + sums[g, g]

  def combine(xx: float, yy: float, xy: float, n: int, m: int) -> float:
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)

  value = combine(sums_xx.sum(), sums_yy.sum(), sums_xy.sum(), len(x), len(y))
  left = [
    combine(without(sums_xx, g), without(sums_yy, g), without(sums_xy, g), len(x) - sizes_x[g], len(y) - sizes_y[g])
    for g in range(groups)
  ]
  return value, (groups - 1) * float(np.var(left))


def _bounds(count: int, groups: int) -> np.ndarray:
  return np.arange(groups + 1) * count // groups


def _group_sums(x: np.ndarray, y: np.ndarray, groups: int) -> np.ndarray:
  """Sums of the kernel over pairs of groups, [G, G]; a picture is not paired with itself."""
  values = kernel(x, y)
  if x is y:
    np.fill_diagonal(values, 0)
  rows = np.add.reduceat(values, _bounds(len(x), groups)[:-1], axis=0)
  return np.add.reduceat(rows, _bounds(len(y), groups)[:-1], axis=1)
