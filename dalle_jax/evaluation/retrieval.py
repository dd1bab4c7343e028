"""How often the right caption of a picture, and the right picture of a caption, are among the best scored ones."""

import numpy as np

TOP = (1, 5)


def scores(similarity: np.ndarray, split: str) -> dict[str, float]:
  """Flat figures: the accuracy of retrieval in both directions, and the number of captions.

  Args:
    similarity: [N, N], of pictures, in rows, and as many different captions; caption i is that of picture i.
    split: names the figures.
  """
  figures = {}
  for name, rows in (('image_to_text', similarity), ('text_to_image', similarity.T)):
    # Others at least as good as the right one: a tie is no find.
    better = np.sum(rows >= np.diag(rows)[:, None], axis=1) - 1
    figures |= {f'retrieval/{split}/{name}_top_{k}': float(np.mean(better < k)) for k in TOP}
  return figures | {f'retrieval/{split}/num_captions': float(len(similarity))}
