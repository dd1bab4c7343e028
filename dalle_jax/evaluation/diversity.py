"""Diversity of the images generated for one prompt."""

import numpy as np


def pairwise_distance(x: np.ndarray) -> np.ndarray:
  """The mean Euclidean distance over all pairs of K vectors, for P sets [P, K, F] with K > 1: [P]."""
  first, second = np.triu_indices(x.shape[1], k=1)
  # One set at a time: the pairs of all sets together may not fit in memory.
  return np.array(
    [np.linalg.norm(vectors[first] - vectors[second], axis=-1).mean() for vectors in x.astype(np.float64)]
  )


def pixel_distance(images: np.ndarray) -> np.ndarray:
  """The mean root-mean-square pixel difference over all pairs of the K images of each prompt.

  Args:
    images: uint8 [P, K, H, W, 3], K images for each of P prompts.

  Returns:
    [P], as a share of the pixel range: 1 is the distance from black to white.
  """
  flat = images.reshape(*images.shape[:2], -1)
  return np.array([pairwise_distance(pixels[None] / 255)[0] for pixels in flat]) / np.sqrt(flat.shape[-1])


def num_distinct(codes: np.ndarray) -> np.ndarray:
  """The number of distinct code grids per prompt, from codes [P, K, h, w]: [P]."""
  return np.array([len(np.unique(grids.reshape(len(grids), -1), axis=0)) for grids in codes])


def vendi(x: np.ndarray) -> np.ndarray:
  """The Vendi score, an effective number of distinct vectors (Friedman and Dieng 2023).

  The score is exp of the entropy of the eigenvalues of C / K, where C is the matrix [K, K] of cosine similarities.

  Args:
    x: [P, K, F], K vectors for each of P prompts.

  Returns:
    [P], each between 1 and K.
  """
  x = x.astype(np.float64)
  unit = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300)
  values = np.linalg.eigvalsh(unit @ unit.transpose(0, 2, 1) / x.shape[1]).clip(0)
  return np.exp(-np.sum(values * np.log(np.where(values > 0, values, 1)), axis=-1))
