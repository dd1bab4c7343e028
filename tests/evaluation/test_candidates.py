import itertools

import numpy as np
import pytest

from dalle_jax.evaluation import candidates
from dalle_jax.evaluation.figures import Z, wilson

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
  means, low, high = candidates.curve(right, right, candidates.powers_of_two(16))
  assert all(a <= b for a, b in itertools.pairwise(means)) and means[-1] == right.any(axis=1).mean()
  assert (low < means).all() and (means <= high).all()


def test_the_interval_is_as_wide_as_the_variance_over_prompts_says():
  difficulty = RNG.random((100, 1))
  right = RNG.random((100, 8)) < difficulty
  means, low, high = candidates.curve(RNG.random((100, 8)), right, [1])
  stderr = right.mean(axis=1).std(ddof=1) / np.sqrt(100)
  assert high[0] - low[0] == pytest.approx(2 * Z * stderr, rel=0.02)
  assert high[0] - low[0] > 1.5 * np.subtract(*wilson(means[0], 800)[::-1])
  all_right = candidates.curve(right, np.ones((100, 8)), [1, 8])
  np.testing.assert_allclose(all_right[1], wilson(1, 100)[0])  # as for one candidate of each prompt
  np.testing.assert_allclose(all_right[2], 1)


def test_powers_of_two_up_to_a_maximum():
  assert candidates.powers_of_two(128) == [1, 2, 4, 8, 16, 32, 64, 128]
  assert candidates.powers_of_two(100)[-1] == 64 and candidates.powers_of_two(1) == [1]
