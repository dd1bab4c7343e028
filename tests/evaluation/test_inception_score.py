import numpy as np
import pytest

from dalle_jax.evaluation.inception_score import score


def test_certain_and_uniform_predictions_have_closed_form_scores():
  certain = 100 * np.eye(4)[np.arange(40) % 4]
  figure = score(certain, splits=10)
  assert figure[:3] == (pytest.approx(4), pytest.approx(0, abs=1e-9), 40)
  assert score(np.zeros((20, 7))).value == pytest.approx(1)


def test_the_score_averages_over_parts():
  # Two images per part. Each has probability p of its own class, one of two: the mean divergence is ln 2 - entropy(p).
  p = 0.8
  logits = np.log([[p, 1 - p], [1 - p, p]] * 2 + [[1e-300, 1]] * 2)
  expected = np.exp(np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p))
  figure = score(logits, splits=3)
  assert figure.value == pytest.approx((2 * expected + 1) / 3)
  assert figure.stderr == pytest.approx(np.std([expected, expected, 1], ddof=1) / np.sqrt(3))
