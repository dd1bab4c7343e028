"""What a model of text has learnt about words: neighbours of embeddings, and analogies (Mikolov et al. 2013)."""

from typing import Any

import numpy as np


def table(params: Any) -> np.ndarray:
  """The token embeddings [V, D] of a model of text.

  Args:
    params: of the part 'model'.

  Raises:
    ValueError: the model has none, as n-grams do not.
  """
  found = params if isinstance(params, dict) else {}
  found = found.get('embeddings', found).get('vocabulary')
  if found is None:
    raise ValueError('The model has no embeddings; all kinds but ngram do.')
  return np.asarray(found['embedding'], np.float32)[:-1]  # the last is that of the start


def nearest(
  embeddings: np.ndarray, query: np.ndarray, count: int, without: tuple[int, ...] = ()
) -> list[tuple[int, float]]:
  """The `count` ids whose embeddings point most in the direction of `query` [D], with the cosines, best first."""
  norms = np.linalg.norm(embeddings, axis=-1) * np.linalg.norm(query)
  cosines = embeddings @ query / np.maximum(norms, 1e-12)
  cosines[list(without)] = -np.inf
  order = np.argsort(-cosines, kind='stable')[:count]
  return [(int(i), float(cosines[i])) for i in order if np.isfinite(cosines[i])]


def analogy(embeddings: np.ndarray, a: int, b: int, c: int, count: int) -> list[tuple[int, float]]:
  """What is to c as b is to a: neighbours of b - a + c, each of length 1 before, without the three themselves."""
  unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)
  return nearest(unit, unit[b] - unit[a] + unit[c], count, without=(a, b, c))
