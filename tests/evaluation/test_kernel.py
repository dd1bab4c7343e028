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


def test_by_brute_force(sets):
  x, y = sets
  found = kernel.distance(x, y)
  assert found.value == pytest.approx(_by_hand(x, y), rel=1e-10)
  assert found.count == 9


def test_pairs_are_not_compared_with_each_other(sets):
  x, y = sets
  assert kernel.distance(x[:9], y, paired=True).value == pytest.approx(_by_hand(x[:9], y, paired=True), rel=1e-10)
  rng = np.random.default_rng(0)
  found = []
  for _ in range(200):
    shared = 2 * rng.normal(size=(20, 3))
    x, y = (shared + rng.normal(size=(20, 3)) for _ in range(2))
    found.append([kernel.distance(x, y, paired=paired).value for paired in (True, False)])
  means, errors = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(200)
  assert abs(means[0]) < 3 * errors[0]
  assert means[1] < -10 * errors[1]


def test_the_jackknife_by_brute_force(sets, monkeypatch):
  x, y = sets
  monkeypatch.setattr(kernel, 'GROUPS', 3)
  order = np.random.default_rng(5)  # as pictures are dealt
  x_dealt, y_dealt = x[order.permutation(11)], y[order.permutation(9)]
  bounds = [(0, 3), (3, 7), (7, 11)], [(0, 3), (3, 6), (6, 9)]
  left = [
    _by_hand(np.delete(x_dealt, np.s_[a:b], axis=0), np.delete(y_dealt, np.s_[c:d], axis=0))
    for (a, b), (c, d) in zip(*bounds, strict=True)
  ]
  expected = np.sqrt(2 / 3 * np.sum((np.array(left) - np.mean(left)) ** 2))
  assert kernel.distance(x, y, seed=5).stderr == pytest.approx(expected, rel=1e-8)


def test_large_sets_are_dealt_into_subsets(monkeypatch):
  monkeypatch.setattr(kernel, 'SUBSET', 50)
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 1
  order = np.random.default_rng(3)
  parts = zip(*(np.split(part[order.permutation(200)], 4) for part in (x, y)), strict=True)
  found = kernel.distance(x, y, seed=3)
  assert found.value == pytest.approx(np.mean([_by_hand(a, b) for a, b in parts]), rel=1e-9)


def test_it_is_unbiased_and_its_standard_error_is_right():
  rng = np.random.default_rng(0)
  same = [kernel.distance(rng.normal(size=(40, 3)), rng.normal(size=(40, 3))).value for _ in range(300)]
  assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(300)
  apart = [kernel.distance(rng.normal(size=(80, 3)), rng.normal(size=(80, 3)) + 0.7) for _ in range(150)]
  assert np.mean([f.stderr for f in apart]) == pytest.approx(np.std([f.value for f in apart]), rel=0.25)
