import numpy as np
import pytest

from dalle_jax.evaluation.inception_score import score


def test_in_closed_form():
  certain = 100 * np.eye(4)[np.arange(40) % 4]
  found = score(certain, splits=10)
  assert found == (pytest.approx(4), pytest.approx(0, abs=1e-9), 40)
  assert score(np.zeros((20, 7))).value == pytest.approx(1)


def test_parts_by_hand():
  # Two pictures a part, each with the probability p of its own of two classes: ln 2 - the entropy of p.
  p = 0.8
  logits = np.log([[p, 1 - p], [1 - p, p]] * 2 + [[1e-300, 1]] * 2)
  expected = np.exp(np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p))
  found = score(logits, splits=3)
  assert found.value == pytest.approx((2 * expected + 1) / 3)
  assert found.stderr == pytest.approx(np.std([expected, expected, 1], ddof=1) / np.sqrt(3))
