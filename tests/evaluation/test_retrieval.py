import numpy as np
import pytest

from dalle_jax.evaluation import retrieval
from dalle_jax.evaluation.figures import Z


def test_accuracy_is_computed_in_both_directions():
  similarity = np.zeros((12, 12))
  similarity[:3, 0] = [5, 9, 7]  # image 0 is the third best for caption 0
  similarity[0, :8] = [5, 6, 6, 6, 6, 6, 6, 6]  # caption 0 is the eighth best for image 0
  similarity[np.arange(1, 12), np.arange(1, 12)] = 8
  figures = retrieval.scores(similarity, 'validation')
  low, high = (figures.pop(f'retrieval_{end}/validation/text_to_image_top_5') for end in ('low', 'high'))
  assert (low, high) == pytest.approx((12 / (12 + Z**2), 1))  # Wilson's interval for 12 of 12
  assert {name: value for name, value in figures.items() if 'retrieval/' in name} == pytest.approx({
    'retrieval/validation/image_to_text_top_1': 10 / 12,  # image 1 also prefers caption 0
    'retrieval/validation/image_to_text_top_5': 11 / 12,
    'retrieval/validation/text_to_image_top_1': 11 / 12,
    'retrieval/validation/text_to_image_top_5': 1.0,
    'retrieval/validation/num_captions': 12.0,
  })  # fmt: skip


def test_a_model_with_constant_scores_is_never_right():
  figures = retrieval.scores(np.zeros((8, 8)), 'train')
  assert figures['retrieval/train/image_to_text_top_1'] == 0
