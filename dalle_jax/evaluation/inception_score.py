"""The Inception score (Salimans et al. 2016): exp of the mean divergence of a picture's classes from all pictures'."""

import numpy as np
import scipy.special

from dalle_jax.evaluation import figures
from dalle_jax.evaluation.figures import Figure

SPLITS = 10


def score(logits: np.ndarray, splits: int = SPLITS) -> Figure:
  """Of class logits [N, C], N at least `splits`: the mean over parts of equal size, in the order given.

  The score of a part rises with its size, so scores are comparable at one number of pictures only.
  """
  assert len(logits) >= splits
  log_probs = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
  parts = np.array([_score(part) for part in np.array_split(log_probs, splits)])
  return figures.mean(parts)._replace(count=len(logits))


def _score(log_probs: np.ndarray) -> float:
  marginal = scipy.special.logsumexp(log_probs, axis=0) - np.log(len(log_probs))
  return float(np.exp(np.mean(np.sum(np.exp(log_probs) * (log_probs - marginal), axis=-1))))
