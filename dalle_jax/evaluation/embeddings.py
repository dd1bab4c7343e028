"""Nearest neighbours and analogies in the token embeddings of a text model (Mikolov et al. 2013)."""

from typing import Any

import numpy as np


def table(params: Any) -> np.ndarray:
  """The token embeddings [V, D] of a text model.

  Args:
    params: the parameters of the bundle part 'model'.

  Raises:
    ValueError: the model has no embeddings. N-grams have none.
  """
  tree = params if isinstance(params, dict) else {}
  vocabulary = tree.get('embeddings', tree).get('vocabulary')
  if vocabulary is None:
    raise ValueError('The model has no embeddings. Use a model whose config.model.kind is not ngram.')
  return np.asarray(vocabulary['embedding'], np.float32)[:-1]  # the last row is the start token, not a word


def nearest(
  embeddings: np.ndarray, query: np.ndarray, count: int, without: tuple[int, ...] = ()
) -> list[tuple[int, float]]:
  """Find the tokens whose embeddings have the highest cosine similarity to a vector.

  Args:
    embeddings: [V, D].
    query: [D].
    count: the number of tokens to return.
    without: token ids to exclude.

  Returns:
    Pairs (token id, cosine similarity), the most similar first.
  """
  norms = np.linalg.norm(embeddings, axis=-1) * np.linalg.norm(query)
  cosines = embeddings @ query / np.maximum(norms, 1e-12)
  cosines[list(without)] = -np.inf
  order = np.argsort(-cosines, kind='stable')[:count]
  return [(int(i), float(cosines[i])) for i in order if np.isfinite(cosines[i])]


def analogy(embeddings: np.ndarray, a: int, b: int, c: int, count: int) -> list[tuple[int, float]]:
  """Find the tokens that are to c as b is to a: the neighbours of b - a + c.

  The embeddings are scaled to length 1 first. The result, as from `nearest`, excludes a, b and c.
  """
  unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)
  return nearest(unit, unit[b] - unit[a] + unit[c], count, without=(a, b, c))
