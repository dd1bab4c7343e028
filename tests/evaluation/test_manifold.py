import numpy as np
import pytest

from dalle_jax.evaluation import manifold
from dalle_jax.evaluation.figures import wilson
from dalle_jax.evaluation.manifold import precision_recall


def _by_hand(points, centres, k):
  inside = 0
  for point in points:
    for i, centre in enumerate(centres):
      others = sorted(np.linalg.norm(centre - other) for j, other in enumerate(centres) if j != i)
      if np.linalg.norm(point - centre) <= others[k - 1]:
        inside += 1
        break
  return inside / len(points)


@pytest.mark.parametrize('k', [1, 3])
def test_precision_and_recall_match_brute_force(monkeypatch, k):
  monkeypatch.setattr(manifold, 'BLOCK', 7)
  rng = np.random.default_rng(k)
  real, drawn = rng.normal(size=(30, 2)), 0.5 * rng.normal(size=(25, 2)) + 1.5
  precision, recall = precision_recall(real, drawn, k)
  assert precision[:3] == (_by_hand(drawn, real, k), None, 25)
  assert recall[:3] == (_by_hand(real, drawn, k), None, 30)
  assert 0 < recall.value < 1 and 0 < precision.value < 1
  assert recall.interval == wilson(recall.value, 30)


def test_intervals_of_images_for_one_caption_count_it_once_if_all_agree():
  x = np.random.default_rng(0).normal(size=(20, 4))
  for figure in precision_recall(x, x[::-1], groups=[i // 4 for i in range(20)]):
    assert figure.interval == pytest.approx(wilson(1, 5)) and figure.count == 20


def test_equal_sets_score_one_and_distant_sets_zero():
  x = 1000 + np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
  assert [f.value for f in precision_recall(x, x[::-1])] == [1, 1]
  assert [f.value for f in precision_recall(x, x + 50)] == [0, 0]


def test_repeated_features_lie_in_their_own_manifold_despite_rounding():
  # Each vector occurs four times, so that all balls have radius 0.
  x = np.repeat(np.random.default_rng(0).normal(size=(6, 300)), 4, axis=0).astype(np.float32)
  rounded = x * (1 + np.float32(1e-7))
  assert [f.value for f in precision_recall(x, rounded)] == [1, 1]
