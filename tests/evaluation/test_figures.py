import numpy as np
import pytest
import scipy.stats

from dalle_jax.evaluation import figures
from dalle_jax.evaluation.figures import Figure, from_flat, mean, scaled, share


def test_means_and_shares_match_hand_computed_values():
  assert mean(np.array([1.0, 3.0])) == (2, pytest.approx(1), 2, None)
  assert mean(np.array([5.0])) == (5, None, 1, None)
  assert share(np.array([True, False, True, True]))[:3] == (0.75, None, 4)


@pytest.mark.parametrize(('successes', 'count'), [(0, 1), (1, 1), (0, 200), (3, 4), (198, 200), (200, 200)])
def test_intervals_of_shares_are_those_of_wilson(successes, count):
  values = np.arange(count) < successes
  expected = scipy.stats.binomtest(successes, count).proportion_ci(0.95, 'wilson')
  low, high = share(values).interval
  assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
  assert 0 <= low <= successes / count <= high <= 1 and high - low > 0.01


def test_the_interval_covers_the_true_share_in_95_of_100_cases_also_near_one():
  for true in (0.9, 0.99):
    chances = scipy.stats.binom.pmf(np.arange(201), 200, true)
    intervals = [figures.wilson(k / 200, 200) for k in range(201)]
    covered = sum(chance for chance, (low, high) in zip(chances, intervals, strict=True) if low <= true <= high)
    assert 0.93 < covered < 0.985


def test_values_of_a_group_that_agree_count_as_one():
  right = np.random.default_rng(0).random(60) < 0.7
  single = share(right)
  repeated = share(right.repeat(5), np.arange(60).repeat(5).tolist())
  assert repeated.count == 300 and repeated.value == pytest.approx(single.value)
  assert repeated.interval == pytest.approx(single.interval, abs=2e-3)  # up to a factor of 60 / 59
  assert share(np.ones(300, bool), np.arange(60).repeat(5).tolist()).interval == pytest.approx(figures.wilson(1, 60))
  assert share(right, range(60)).interval == pytest.approx(single.interval, abs=2e-3)
  values = np.random.default_rng(0).normal(size=60)
  assert mean(values.repeat(5), np.arange(60).repeat(5).tolist()).stderr == pytest.approx(mean(values).stderr)
  assert mean(values, ['a'] * 60).stderr is None


def test_standard_errors_of_grouped_means_match_the_spread():
  rng = np.random.default_rng(1)
  groups = [group for group in range(40) for _ in range(1 + group % 4)]
  found = []
  for _ in range(500):
    found.append(mean(rng.normal(size=40)[groups] + 0.5 * rng.normal(size=len(groups)), groups))
  spread = np.std([figure.value for figure in found])
  assert np.sqrt(np.mean([figure.stderr**2 for figure in found])) == pytest.approx(spread, rel=0.12)
  assert np.mean([mean(np.full(4, 1.0)).stderr]) == 0


def test_figures_become_flat_metrics_with_standard_errors_or_intervals():
  assert figures.flat('a/b/c', Figure(1, 0.5, 9)) == {'a/b/c': 1, 'a_stderr/b/c': 0.5}
  assert figures.flat('a/b', Figure(1, None, 9, (0.7, 1.0))) == {'a/b': 1, 'a_low/b': 0.7, 'a_high/b': 1.0}
  assert figures.flat('a', Figure(1, None, 9, (0.7, 1.0))) == {'a': 1, 'a_low': 0.7, 'a_high': 1.0}


def test_scaling_converts_the_standard_error_and_flat_metrics_become_figures():
  assert scaled(Figure(2, 0.5, 9), 3) == (6, 1.5, 9, None)
  assert scaled(Figure(2, None, 9), 3) == (6, None, 9, None)
  assert from_flat({'a': 1, 'a_stderr': 2, 'b': 3}, 4) == {'a': (1, 2, 4, None), 'b': (3, None, 4, None)}
