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


def test_the_jackknife_matches_brute_force(sets, monkeypatch):
  x, y = sets
  monkeypatch.setattr(kernel, 'GROUPS', 3)
  rng = np.random.default_rng(5)  # splits the images as `distance` does
  x_split, y_split = x[rng.permutation(11)], y[rng.permutation(9)]
  bounds = [(0, 3), (3, 7), (7, 11)], [(0, 3), (3, 6), (6, 9)]
  leave_one_out = [
    _by_hand(np.delete(x_split, np.s_[a:b], axis=0), np.delete(y_split, np.s_[c:d], axis=0))
    for (a, b), (c, d) in zip(*bounds, strict=True)
  ]
  expected = np.sqrt(2 / 3 * np.sum((np.array(leave_one_out) - np.mean(leave_one_out)) ** 2))
  assert kernel.distance(x, y, seed=5).stderr == pytest.approx(expected, rel=1e-8)


def test_large_sets_are_split_into_subsets(monkeypatch):
  monkeypatch.setattr(kernel, 'SUBSET', 50)
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 1
  order = np.random.default_rng(3)
  subsets = zip(*(np.split(features[order.permutation(200)], 4) for features in (x, y)), strict=True)
  figure = kernel.distance(x, y, seed=3)
  assert figure.value == pytest.approx(np.mean([_by_hand(a, b) for a, b in subsets]), rel=1e-9)


def test_the_estimate_is_unbiased_and_the_standard_error_matches_the_spread():
  rng = np.random.default_rng(0)
  same = [kernel.distance(rng.normal(size=(40, 3)), rng.normal(size=(40, 3))).value for _ in range(300)]
  assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(300)
  apart = [kernel.distance(rng.normal(size=(80, 3)), rng.normal(size=(80, 3)) + 0.7) for _ in range(150)]
  assert np.mean([f.stderr for f in apart]) == pytest.approx(np.std([f.value for f in apart]), rel=0.25)
