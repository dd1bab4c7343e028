"""Retrieval accuracy: how often the matching caption of an image, or image of a caption, has a top score."""

import numpy as np

from dalle_jax.evaluation import figures

TOP = (1, 5)


def scores(similarity: np.ndarray, split: str) -> dict[str, float]:
  """Compute the retrieval accuracy in both directions as flat metrics with intervals (see `figures.flat`).

  The intervals treat the N candidates as fixed.

  Args:
    similarity: [N, N], between N images (rows) and N different captions (columns); caption i belongs to image i.
    split: the name of the split, which is part of the metric names.
  """
  metrics: dict[str, float] = {}
  for name, rows in (('image_to_text', similarity), ('text_to_image', similarity.T)):
    # Ties count against the match: a model with constant scores must not look accurate.
    num_better = np.sum(rows >= np.diag(rows)[:, None], axis=1) - 1
    for k in TOP:
      metrics |= figures.flat(f'retrieval/{split}/{name}_top_{k}', figures.share(num_better < k))
  return metrics | {f'retrieval/{split}/num_captions': float(len(similarity))}
