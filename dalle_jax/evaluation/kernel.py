"""The kernel inception distance between two sets of features (KID; Binkowski et al. 2018).

It is the squared maximum mean discrepancy with the polynomial kernel (x . y / F + 1)^3. Unlike the Fréchet distance,
the estimate is unbiased for any number of images. It can be negative when the two sets are similar.
"""

import numpy as np

from dalle_jax.evaluation.figures import Figure

SUBSET = 1000  # most images in a subset
GROUPS = 20  # most groups of the jackknife


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """The kernel between all pairs of features x [N, F] and y [M, F]: [N, M]."""
  return (x @ y.T / x.shape[1] + 1) ** 3


def distance(x: np.ndarray, y: np.ndarray, seed: int = 0, paired: bool = False) -> Figure:
  """Estimate the kernel distance between two sets of features.

  The images are split at random into subsets of at most SUBSET. The distance is the mean of the subsets' estimates,
  which are independent because no image is in two subsets. The standard error comes from a jackknife that leaves out
  one group of images of a subset at a time.

  Args:
    x: features of the first set [N, F], N at least 4.
    y: features of the second set [M, F], M at least 4.
    seed: the seed of the random split.
    paired: whether row i of both sets belongs together, such as a real image and an image generated for its caption.
      Such pairs are not compared with each other: their similarity would bias the distance downwards.
  """
  assert min(len(x), len(y)) >= 4 and (not paired or len(x) == len(y))
  rng = np.random.default_rng(seed)
  num_subsets = -(-min(len(x), len(y)) // SUBSET)
  order_x = rng.permutation(len(x))
  order_y = order_x if paired else rng.permutation(len(y))
  estimates = []
  for rows_x, rows_y in zip(np.array_split(order_x, num_subsets), np.array_split(order_y, num_subsets), strict=True):
    subset_x, subset_y = np.asarray(x[rows_x][:SUBSET], np.float64), np.asarray(y[rows_y][:SUBSET], np.float64)
    estimates.append(_estimate(subset_x, subset_y, paired))
  values, variances = np.transpose(estimates)
  return Figure(float(values.mean()), float(np.sqrt(variances.sum()) / num_subsets), min(len(x), len(y)))


def _estimate(x: np.ndarray, y: np.ndarray, paired: bool) -> tuple[float, float]:
  """The unbiased estimate of the distance, and the jackknife estimate of its variance."""
  groups = min(GROUPS, min(len(x), len(y)) // 2)
  sums = [_group_sums(x, x, groups, True), _group_sums(y, y, groups, True), _group_sums(x, y, groups, paired)]
  sizes_x, sizes_y = (np.diff(_bounds(len(features), groups)) for features in (x, y))

  def combine(totals: list[float], n: int, m: int) -> float:
    """The distance, given the kernel's sums within x, within y and between them for n and m images."""
    xx, yy, xy = totals
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * (m - 1 if paired else m))

  def without(values: np.ndarray, g: int) -> float:
    """The sum of `values` [G, G] without group g of both sets."""
    return values.sum() - values[g].sum() - values[:, g].sum() + values[g, g]

  value = combine([values.sum() for values in sums], len(x), len(y))
  leave_one_out = [
    combine([without(values, g) for values in sums], len(x) - sizes_x[g], len(y) - sizes_y[g]) for g in range(groups)
  ]
  return value, (groups - 1) * float(np.var(leave_one_out))


def _bounds(count: int, groups: int) -> np.ndarray:
  """The bounds [groups + 1] that divide `count` rows into groups of nearly equal size."""
  return np.arange(groups + 1) * count // groups


def _group_sums(x: np.ndarray, y: np.ndarray, groups: int, skip_diagonal: bool) -> np.ndarray:
  """Sum the kernel over each pair of groups, [G, G]; `skip_diagonal` leaves out the pairs (x[i], y[i])."""
  values = kernel(x, y)
  if skip_diagonal:
    np.fill_diagonal(values, 0)
  rows = np.add.reduceat(values, _bounds(len(x), groups)[:-1], axis=0)
  return np.add.reduceat(rows, _bounds(len(y), groups)[:-1], axis=1)
