import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.evaluation.frechet import Gaussian, distance, fit, stderr


def test_the_distance_of_independent_gaussians_has_a_closed_form():
  # In one dimension the distance is (m1 - m2)^2 + (s1 - s2)^2; independent dimensions add up.
  a = Gaussian(np.array([0.0, 3.0]), np.diag([1.0, 4.0]))
  b = Gaussian(np.array([2.0, 3.0]), np.diag([2.0, 1.0]))
  assert distance(a, b) == pytest.approx(4 + 1 + 9, rel=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_the_distance_matches_the_formula_with_the_matrix_root(seed, size):
  rng = np.random.default_rng(seed)
  x, y = rng.normal(size=(40, size)) @ rng.normal(size=(size, size)), rng.normal(size=(30, size)) + rng.normal()
  s1, s2 = (np.cov(features, rowvar=False).reshape(size, size) for features in (x, y))
  squared = np.sum((x.mean(0) - y.mean(0)) ** 2)
  expected = squared + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
  assert distance(fit(x), fit(y)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
  assert distance(fit(y), fit(x)) == pytest.approx(distance(fit(x), fit(y)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('count', [5, 300])
def test_the_distance_of_a_set_to_itself_is_zero_at_any_rank(count):
  x = 100 * np.random.default_rng(0).normal(size=(count, 20)).astype(np.float32)
  x[:, 3] = x[:, 2]  # the covariance becomes singular
  assert distance(fit(x), fit(x)) < 1e-9
  moved = x + np.float32(1)
  assert distance(fit(x), fit(moved)) == pytest.approx(20, rel=1e-4)


@pytest.mark.parametrize('paired', [False, True])
def test_the_standard_error_matches_the_spread_of_repeated_measurements(paired):
  rng = np.random.default_rng(0)
  mixing, offset = rng.normal(size=(4, 4)) / 3 + np.eye(4), np.array([0.3, 0, 0, 0])
  distances, errors = [], []
  for _ in range(150):
    x = rng.normal(size=(200, 4))
    y = x @ mixing + offset if paired else rng.normal(size=(300, 4)) @ mixing + offset
    distances.append(distance(fit(x), fit(y)))
    errors.append(stderr(x, y, paired))
  assert np.mean(errors) == pytest.approx(np.std(distances), rel=0.2)


def test_there_is_no_standard_error_with_too_few_images():
  x = np.random.default_rng(0).normal(size=(39, 20))
  assert stderr(x, x + 1) is None
  x[:, 5] = 0  # a feature that is always 0 does no harm
  both = np.concatenate([x, x + 0.1 * x[::-1]])
  assert np.isfinite(stderr(both, both + 1))
