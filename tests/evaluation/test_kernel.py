import itertools

import numpy as np
import pytest

from dalle_jax.evaluation import kernel


def _by_hand(x, y, paired=False):
  def k(a, b):
    return (np.dot(a, b) / len(a) + 1) ** 3

  n, m = len(x), len(y)
  within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
  within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
  across = [k(x[i], y[j]) for i in range(n) for j in range(m) if i != j or not paired]
  return within_x + within_y - 2 * np.mean(across)


@pytest.fixture
def sets():
  rng = np.random.default_rng(0)
  return rng.normal(size=(11, 3)), rng.normal(size=(9, 3)) + 0.5


def test_the_distance_matches_brute_force(sets):
  x, y = sets
  figure = kernel.distance(x, y)
  assert figure.value == pytest.approx(_by_hand(x, y), rel=1e-10)
  assert figure.count == 9


def test_paired_images_are_not_compared_with_each_other(sets):
  x, y = sets
  assert kernel.distance(x[:9], y, paired=True).value == pytest.approx(_by_hand(x[:9], y, paired=True), rel=1e-10)
  rng = np.random.default_rng(0)
  distances = []
  for _ in range(200):
    shared = 2 * rng.normal(size=(20, 3))
    x, y = (shared + rng.normal(size=(20, 3)) for _ in range(2))
    distances.append([kernel.distance(x, y, paired=paired).value for paired in (True, False)])
  means, errors = np.mean(distances, axis=0), np.std(distances, axis=0) / np.sqrt(200)
  assert abs(means[0]) < 3 * errors[0]
  assert means[1] < -10 * errors[1]


def test_the_covariances_match_brute_force_over_pairs_of_terms():
  rng = np.random.default_rng(0)
  x = rng.normal(size=7)
  terms = np.add.outer(x, x) + 0.1 * np.multiply.outer(x, x)
  pairs = list(itertools.permutations(range(7), 2))
  products = {0: [], 1: [], 2: []}
  for first, second in itertools.product(pairs, pairs):
    products[len({*first} & {*second})].append(terms[first] * terms[second])
  none, one, both = (np.mean(products[common]) for common in (0, 1, 2))
  expected = pytest.approx((one - none, both - none), rel=1e-9)
  assert kernel.covariances(terms) == expected
  assert kernel.covariances(terms + np.diag(rng.normal(size=7))) == expected
  # They add up to the unbiased estimate of the variance: U^2 - (an unbiased estimate of E[U]^2).
  variance = np.mean([terms[i, j] for i, j in pairs]) ** 2 - none
  assert kernel._variance(*kernel.covariances(terms), 7) == pytest.approx(variance, rel=1e-9)


def test_large_sets_are_split_into_subsets(monkeypatch):
  monkeypatch.setattr(kernel, 'SUBSET', 50)
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 1
  order = np.random.default_rng(3)
  subsets = zip(*(np.split(features[order.permutation(200)], 4) for features in (x, y)), strict=True)
  figure = kernel.distance(x, y, seed=3)
  assert figure.value == pytest.approx(np.mean([_by_hand(a, b) for a, b in subsets]), rel=1e-9)


@pytest.mark.parametrize(('paired', 'shift'), [(False, 0.0), (False, 0.2), (True, 0.0), (True, 0.2)])
def test_the_estimate_is_unbiased_and_the_standard_error_matches_the_spread(paired, shift):
  """Also between equal distributions, where a jackknife gives 1.4 times the spread."""
  rng = np.random.default_rng(0)
  figures, count = [], 400
  for _ in range(count):
    common = rng.normal(size=(60, 24)) if paired else 0.0
    x, y = (common + rng.normal(size=(60, 24)) for _ in range(2))
    figures.append(kernel.distance(x, y + shift, paired=paired))
  values, errors = np.array([f.value for f in figures]), np.array([f.stderr for f in figures])
  if not shift:
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(count)
  assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.2)
