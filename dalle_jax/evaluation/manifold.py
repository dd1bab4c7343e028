"""Precision and recall of drawn pictures (Kynkäänniemi et al. 2019).

A set's manifold is the union of balls around its features, each of which reaches to the k-th nearest other one.
Precision is the share of drawn pictures inside the real manifold, recall that of real ones inside the drawn manifold.
"""

import numpy as np

from dalle_jax.evaluation import figures
from dalle_jax.evaluation.figures import Figure

K = 3
BLOCK = 1024  # rows whose distances are held at a time
# Squared distances below this share of the squared norms are 0: what rounding leaves between equal features, which a
# ball of radius 0 would else leave outside.
_ZERO = 1e-10


def precision_recall(real: np.ndarray, drawn: np.ndarray, k: int = K) -> tuple[Figure, Figure]:
  """Of features [N, F] and [M, F], N and M above k. Standard errors take the manifold as given."""
  assert min(len(real), len(drawn)) > k
  centre = np.mean(real, axis=0, dtype=np.float64)
  real, drawn = (np.asarray(part, np.float64) - centre for part in (real, drawn))
  precision = _inside(drawn, real, _squared_radii(real, k))
  recall = _inside(real, drawn, _squared_radii(drawn, k))
  return figures.share(precision), figures.share(recall)


def _blocks(count: int) -> list[slice]:
  return [slice(begin, begin + BLOCK) for begin in range(0, count, BLOCK)]


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """[N, M] of [N, F] and [M, F]."""
  norms = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)[None]
  squared = norms - 2 * x @ y.T
  return np.where(squared < _ZERO * norms, 0.0, squared)


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
  """Squared distance of each to its k-th nearest other one, [N]."""
  # Itself, at distance 0, is the nearest.
  return np.concatenate([np.partition(_squared_distances(x[rows], x), k, axis=1)[:, k] for rows in _blocks(len(x))])


def _inside(points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> np.ndarray:
  """Whether each point lies in a ball, bool [N]."""
  found = [np.any(_squared_distances(points[rows], centres) <= squared_radii, axis=1) for rows in _blocks(len(points))]
  return np.concatenate(found)
