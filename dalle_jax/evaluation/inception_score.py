"""The Inception score (Salimans et al. 2016).

It is exp of the mean over images of KL(p(class | image) || p(class)), where p(class) averages over all images.
"""

import numpy as np
import scipy.special

from dalle_jax.evaluation import figures
from dalle_jax.evaluation.figures import Figure

SPLITS = 10


def score(logits: np.ndarray, splits: int = SPLITS) -> Figure:
  """Compute the Inception score of each of `splits` parts of nearly equal size, and average.

  The score of a part grows with its size, so only scores of equally many images are comparable.

  Args:
    logits: class logits [N, C], N at least `splits`; the parts are consecutive rows.
    splits: the number of parts.
  """
  assert len(logits) >= splits
  log_probs = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
  parts = np.array([_score(part) for part in np.array_split(log_probs, splits)])
  return figures.mean(parts)._replace(count=len(logits))


def _score(log_probs: np.ndarray) -> float:
  marginal = scipy.special.logsumexp(log_probs, axis=0) - np.log(len(log_probs))
  return float(np.exp(np.mean(np.sum(np.exp(log_probs) * (log_probs - marginal), axis=-1))))
