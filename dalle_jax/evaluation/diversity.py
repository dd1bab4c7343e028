"""How much the images of one prompt differ."""

import numpy as np


def pairwise_distance(x: np.ndarray) -> np.ndarray:
  """The mean Euclidean distance between two of K vectors, for each of P sets [P, K, F], K > 1: [P]."""
  first, second = np.triu_indices(x.shape[1], k=1)
  # One set at a time: all pairs of pictures of all prompts would not fit in memory.
  return np.array([np.linalg.norm(part[first] - part[second], axis=-1).mean() for part in x.astype(np.float64)])


def pixel_distance(images: np.ndarray) -> np.ndarray:
  """The mean over pairs of the root mean squared difference, in shares of the range, of uint8 [P, K, H, W, 3]: [P]."""
  flat = images.reshape(*images.shape[:2], -1)
  return np.array([pairwise_distance(part[None] / 255)[0] for part in flat]) / np.sqrt(flat.shape[-1])


def num_distinct(codes: np.ndarray) -> np.ndarray:
  """Different grids among those of one prompt, codes [P, K, h, w]: [P]."""
  return np.array([len(np.unique(grids.reshape(len(grids), -1), axis=0)) for grids in codes])


def vendi(x: np.ndarray) -> np.ndarray:
  """The effective number of different vectors among K (Friedman and Dieng 2023), of [P, K, F]: [P] in [1, K].

  exp of the entropy of the eigenvalues of the matrix of cosines, divided by K.
  """
  x = x.astype(np.float64)
  unit = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300)
  values = np.linalg.eigvalsh(unit @ unit.transpose(0, 2, 1) / x.shape[1]).clip(0)
  return np.exp(-np.sum(values * np.log(np.where(values > 0, values, 1)), axis=-1))
