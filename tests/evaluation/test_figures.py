import numpy as np
import pytest

from dalle_jax.evaluation.figures import Figure, from_flat, mean, scaled, share


def test_means_and_shares_match_hand_computed_values():
  assert mean(np.array([1.0, 3.0])) == (2, pytest.approx(1), 2)
  assert mean(np.array([5.0])) == (5, None, 1)
  assert share(np.array([True, False, True, True])) == (0.75, pytest.approx(np.sqrt(0.75 * 0.25 / 4)), 4)


def test_scaling_converts_the_standard_error_and_flat_metrics_become_figures():
  assert scaled(Figure(2, 0.5, 9), 3) == (6, 1.5, 9)
  assert scaled(Figure(2, None, 9), 3) == (6, None, 9)
  assert from_flat({'a': 1, 'a_stderr': 2, 'b': 3}, 4) == {'a': (1, 2, 4), 'b': (3, None, 4)}
