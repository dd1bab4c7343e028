"""Retrieval accuracy: how often the matching caption of an image, or image of a caption, has a top score."""

import numpy as np

TOP = (1, 5)


def scores(similarity: np.ndarray, split: str) -> dict[str, float]:
  """Compute the retrieval accuracy in both directions as flat metrics.

  Args:
    similarity: [N, N], between N images (rows) and N different captions (columns); caption i belongs to image i.
    split: the name of the split, which is part of the metric names.
  """
  figures: dict[str, float] = {}
  for name, rows in (('image_to_text', similarity), ('text_to_image', similarity.T)):
    # Ties count against the match: a model with constant scores must not look accurate.
    num_better = np.sum(rows >= np.diag(rows)[:, None], axis=1) - 1
    figures |= {f'retrieval/{split}/{name}_top_{k}': float(np.mean(num_better < k)) for k in TOP}
  return figures | {f'retrieval/{split}/num_captions': float(len(similarity))}
