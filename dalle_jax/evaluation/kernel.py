"""The kernel inception distance between two sets of features (KID; Binkowski et al. 2018).

It is the squared maximum mean discrepancy with the polynomial kernel (x . y / F + 1)^3. Unlike the Fréchet distance,
the estimate is unbiased for any number of images. It can be negative when the two sets are similar.
"""

import math

import numpy as np

from dalle_jax.evaluation.figures import Figure

SUBSET = 1000  # most images in a subset


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """The kernel between all pairs of features x [N, F] and y [M, F]: [N, M]."""
  return (x @ y.T / x.shape[1] + 1) ** 3


def distance(x: np.ndarray, y: np.ndarray, seed: int = 0, paired: bool = False) -> Figure:
  """Estimate the kernel distance between two sets of features.

  The images are split at random into subsets of at most SUBSET. The distance is the mean of the subsets' estimates,
  which are independent because no image is in two subsets. The standard error comes from the variance of a U-statistic
  (see `covariances`).

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
  value, zeta_1, zeta_2 = np.mean(estimates, axis=0)
  count = min(len(x), len(y))
  variance = _variance(max(zeta_1, 0.0), max(zeta_2, 0.0), min(count // num_subsets, SUBSET)) / num_subsets
  return Figure(float(value), math.sqrt(variance), count)


def _estimate(x: np.ndarray, y: np.ndarray, paired: bool) -> tuple[float, float, float]:
  """The unbiased estimate of the distance, and estimates of ζ1 and ζ2 (see `covariances`).

  If the sets differ in size, ζ1 and ζ2 are those of sets of the smaller size.
  """
  n, m = len(x), len(y)
  within_x, within_y, across = kernel(x, x), kernel(y, y), kernel(x, y)
  sum_across = across.sum() - (np.trace(across) if paired else 0.0)
  value = (within_x.sum() - np.trace(within_x)) / (n * (n - 1)) + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
  value -= 2 * sum_across / (n * (m - 1 if paired else m))
  least = min(n, m)
  within_x, within_y, across = (values[:least, :least] for values in (within_x, within_y, across))
  return (float(value), *covariances(within_x + within_y - across - across.T))


def covariances(terms: np.ndarray) -> tuple[float, float]:
  """Unbiased estimates of ζ1 and ζ2, which give the variance of a U-statistic of order 2 (Hoeffding 1948).

  The U-statistic is the mean of terms [N, N] over all pairs of different units, N at least 4. ζ1 is the covariance of
  two terms that share a unit, and ζ2 is the variance of a term. ζ1 is 0 if both sets have the same distribution, and
  its estimate may then be negative.

  Args:
    terms: symmetric; the diagonal is not read.
  """
  n = len(terms)
  terms = terms - np.diag(np.diag(terms))
  rows = terms.sum(axis=1)
  total, squares, squared_rows = rows.sum(), np.sum(terms**2), np.sum(rows**2)
  # Means of products of two terms: with the same units, with one common unit, and with no common unit.
  same = squares / (n * (n - 1))
  one_common = (squared_rows - squares) / (n * (n - 1) * (n - 2))
  none_common = (total**2 - 4 * squared_rows + 2 * squares) / (n * (n - 1) * (n - 2) * (n - 3))
  return float(one_common - none_common), float(same - none_common)


def _variance(zeta_1: float, zeta_2: float, n: int) -> float:
  """The variance of a U-statistic of order 2 of n units.

  A jackknife counts the part with ζ2 twice. Its standard error of nearly equal sets is 1.4 times too large.
  """
  return (4 * (n - 2) * zeta_1 + 2 * zeta_2) / (n * (n - 1))
