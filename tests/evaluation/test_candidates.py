import itertools

import numpy as np
import pytest

from dalle_jax.evaluation import candidates

RNG = np.random.default_rng(0)


def test_groups_of_one_give_the_mean_and_a_group_of_all_gives_the_best_candidate():
  scores, values = RNG.random((3, 8)), RNG.random((3, 8))
  np.testing.assert_allclose(candidates.chosen(scores, values, 1), values.mean(axis=1))
  np.testing.assert_allclose(candidates.chosen(scores, values, 8), values[np.arange(3), scores.argmax(axis=1)])


@pytest.mark.parametrize('count', [2, 3])
def test_groups_are_disjoint_and_surplus_candidates_are_not_used(count):
  scores, values = RNG.random((2, 7)), RNG.random((2, 7)) < 0.5
  for row, mean_value in enumerate(candidates.chosen(scores, values, count)):
    groups = [range(begin, begin + count) for begin in range(0, 7 - count + 1, count)]
    best = [max(group, key=lambda i: scores[row, i]) for group in groups]
    assert mean_value == pytest.approx(np.mean([values[row, i] for i in best]))


def test_more_candidates_never_hurt_a_perfect_ranking():
  right = RNG.random((50, 16)) < 0.3
  means, errors = candidates.curve(right, right, candidates.powers_of_two(16))
  assert all(a <= b for a, b in itertools.pairwise(means)) and means[-1] == right.any(axis=1).mean()
  assert errors[0] == pytest.approx(right.mean(axis=1).std(ddof=1) / np.sqrt(50))


def test_powers_of_two_up_to_a_maximum():
  assert candidates.powers_of_two(128) == [1, 2, 4, 8, 16, 32, 64, 128]
  assert candidates.powers_of_two(100)[-1] == 64 and candidates.powers_of_two(1) == [1]
