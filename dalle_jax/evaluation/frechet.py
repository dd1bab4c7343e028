"""The Fréchet distance between two sets of features, taken as Gaussians (Heusel et al. 2017):

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2).

The trace of the root is the sum of the singular values of A1 A2^T, where S = A^T A. A is a triangular factor of the
features themselves, so no covariance is formed, whose condition would be the square of the features', and no root of
a matrix without symmetry is taken. It holds whatever the rank: also where there are fewer pictures than features.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

ENOUGH = 2  # pictures for each feature, from which on the standard error is given
_RANK_TOLERANCE = 1e-10  # of singular values, relative to the largest


class Gaussian(NamedTuple):
  """Mean [F] and factor [min(N, F), F] of N features; the covariance is factor^T factor."""

  mean: np.ndarray
  factor: np.ndarray


def fit(features: np.ndarray) -> Gaussian:
  """The Gaussian of features [N, F], N > 1, in float64; the covariance is the unbiased one."""
  x = np.asarray(features, np.float64)
  assert len(x) > 1
  mean = x.mean(axis=0)
  return Gaussian(mean, np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode='r'))


def distance(a: Gaussian, b: Gaussian) -> float:
  """The squared distance; 0 for equal ones."""
  cross = scipy.linalg.svdvals(a.factor @ b.factor.T).sum()
  apart = np.sum((a.mean - b.mean) ** 2) + np.sum(a.factor**2) + np.sum(b.factor**2) - 2 * cross
  return max(float(apart), 0.0)


def stderr(x: np.ndarray, y: np.ndarray, paired: bool = False) -> float | None:
  """The standard error of the distance between features x [N, F] and y [M, F], by the delta method.

  To first order a picture moves the distance by its influence, 2 (m1 - m2) . c + c^T (1 - T) c with c = x - m1 and T
  the map that takes the one Gaussian to the other. This says nothing of the bias, which is upward and the larger part
  where pictures are few.

  Args:
    x: of one set.
    y: of the other.
    paired: row i of both belongs together, as a picture and its reconstruction.

  Returns:
    None with fewer than ENOUGH pictures for a feature.
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
  """Of each row, up to a constant, [N]; T = half half^T with half = factor^-1 root."""
  centred = np.asarray(x, np.float64) - own.mean
  half = np.linalg.pinv(own.factor, rcond=_RANK_TOLERANCE) @ root
  return 2 * centred @ (own.mean - other_mean) + np.sum(centred**2, axis=1) - np.sum((centred @ half) ** 2, axis=1)
