"""Precision and recall of generated images (Kynkäänniemi et al. 2019).

The manifold of a set is a union of balls, one around each feature vector. The radius of a ball is the distance to the
k-th nearest other vector of the set. Precision is the share of generated images in the manifold of the real images.
Recall is the share of real images in the manifold of the generated images.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from dalle_jax.evaluation import figures
from dalle_jax.evaluation.figures import Figure

K = 3
BLOCK = 1024  # rows whose distances are in memory at a time
# Squared distances below this share of the squared norms count as 0. Rounding leaves such distances between equal
# features, which would put an equal feature outside a ball of radius 0.
_ZERO = 1e-10


def precision_recall(
  real: np.ndarray, drawn: np.ndarray, k: int = K, groups: Sequence[Hashable] | None = None
) -> tuple[Figure, Figure]:
  """Compute precision and recall.

  Args:
    real: features of the real images [N, F], N above k.
    drawn: features of the generated images [M, F], M above k.
    k: which nearest neighbour sets the radius of a ball.
    groups: labels of the rows of both sets, such as captions. Rows with equal labels may be correlated (see
      `figures.share`).

  Returns:
    Precision and recall. Their intervals treat the manifolds as fixed.
  """
  assert min(len(real), len(drawn)) > k
  centre = np.mean(real, axis=0, dtype=np.float64)
  real, drawn = (np.asarray(features, np.float64) - centre for features in (real, drawn))
  precision = _inside(drawn, real, _squared_radii(real, k))
  recall = _inside(real, drawn, _squared_radii(drawn, k))
  return figures.share(precision, groups), figures.share(recall, groups)


def _blocks(count: int) -> list[slice]:
  return [slice(begin, begin + BLOCK) for begin in range(0, count, BLOCK)]


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Squared distances [N, M] between x [N, F] and y [M, F]."""
  norms = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)[None]
  squared = norms - 2 * x @ y.T
  return np.where(squared < _ZERO * norms, 0.0, squared)


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
  """The squared distance of each row of x to its k-th nearest other row, [N]."""
  # Index k, not k - 1: the nearest row is the row itself, at distance 0.
  return np.concatenate([np.partition(_squared_distances(x[rows], x), k, axis=1)[:, k] for rows in _blocks(len(x))])


def _inside(points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> np.ndarray:
  """Whether each point lies in at least one ball, bool [N]."""
  inside = [np.any(_squared_distances(points[rows], centres) <= squared_radii, axis=1) for rows in _blocks(len(points))]
  return np.concatenate(inside)
