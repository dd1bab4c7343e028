"""The Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017):

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2).

We write S = A^T A, where A is the triangular factor of a QR decomposition of the centred features. The trace of the
matrix root is then the sum of the singular values of A1 A2^T. This has three advantages:
- It forms no covariance, whose condition number would be the square of the features'.
- It takes no root of an unsymmetric matrix.
- It is exact at any rank, even with fewer images than features.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

ENOUGH = 2  # images per feature that a standard error needs at least
_RANK_TOLERANCE = 1e-10  # smaller singular values, relative to the largest, count as 0


class Gaussian(NamedTuple):
  """A Gaussian fitted to N feature vectors: mean [F] and factor [min(N, F), F]; the covariance is factor^T factor."""

  mean: np.ndarray
  factor: np.ndarray


def fit(features: np.ndarray) -> Gaussian:
  """Fit a Gaussian to features [N, F], N > 1, in float64, with the unbiased covariance."""
  x = np.asarray(features, np.float64)
  assert len(x) > 1
  mean = x.mean(axis=0)
  # NumPy's annotations promise a tuple, but this mode returns an array, which `asarray` passes on.
  return Gaussian(mean, np.asarray(np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode='r')))


def distance(a: Gaussian, b: Gaussian) -> float:
  """The squared Fréchet distance between two Gaussians; 0 if they are equal."""
  cross = scipy.linalg.svdvals(a.factor @ b.factor.T).sum()
  squared = np.sum((a.mean - b.mean) ** 2) + np.sum(a.factor**2) + np.sum(b.factor**2) - 2 * cross
  return max(float(squared), 0.0)


def stderr(x: np.ndarray, y: np.ndarray, paired: bool = False) -> float | None:
  """The standard error of the distance between features x [N, F] and y [M, F], by the delta method.

  To first order, an image x changes the distance by its influence 2 (m1 - m2) . c + c^T (1 - T) c. Here c = x - m1, and
  T is the optimal transport map from the first Gaussian to the second. The standard error does not include the bias,
  which is positive and exceeds the standard error when there are few images.

  Args:
    x: features of the first set [N, F].
    y: features of the second set [M, F].
    paired: whether row i of both sets belongs together, such as an image and its reconstruction.

  Returns:
    The standard error; None if there are fewer than ENOUGH images per feature.
  """
  if min(len(x), len(y)) < ENOUGH * x.shape[1]:
    return None
  a, b = fit(x), fit(y)
  u, values, vt = np.linalg.svd(a.factor @ b.factor.T)
  of_x = _influence(x, a, b.mean, u * np.sqrt(values))
  of_y = _influence(y, b, a.mean, vt.T * np.sqrt(values))
  if paired:
    return float(np.std(of_x + of_y, ddof=1) / np.sqrt(len(x)))
  return float(np.sqrt(np.var(of_x, ddof=1) / len(x) + np.var(of_y, ddof=1) / len(y)))


def _influence(x: np.ndarray, own: Gaussian, other_mean: np.ndarray, root: np.ndarray) -> np.ndarray:
  """The influence of each row of x, up to a constant, [N]; T = half half^T with half = factor^-1 root."""
  centred = np.asarray(x, np.float64) - own.mean
  half = np.linalg.pinv(own.factor, rcond=_RANK_TOLERANCE) @ root
  return 2 * centred @ (own.mean - other_mean) + np.sum(centred**2, axis=1) - np.sum((centred @ half) ** 2, axis=1)
