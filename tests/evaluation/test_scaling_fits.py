import json

import numpy as np
import pytest

from dalle_jax.evaluation import scaling_fits, scaling_laws
from dalle_jax.evaluation.scaling_fits import Table
from dalle_jax.evaluation.scaling_laws import Law

LAW = Law(np.array(1.2), np.log([20.0, 60.0]), np.array([0.35, 0.3]))


def six_per_parameter(params):
  return 6 * params


def ladder(sizes=6, budgets=4, noise=0.003, seed=0):
  n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e4, 1e6, sizes), np.geomspace(1e5, 1e7, budgets)))
  order = np.argsort(n * d)
  n, d = n[order], d[order]
  losses = LAW(np.stack([n, d])) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
  return Table(tuple(f'run{i}' for i in range(len(n))), n, d, 6 * n * d, losses, 'nats per token')


def closed_form(compute):
  (a, b), (log_a, log_b) = LAW.exponents, LAW.log_coefficients
  g = np.exp((np.log(a) + log_a - np.log(b) - log_b) / (a + b))
  return g * (compute / 6) ** (b / (a + b)), (compute / 6) ** (a / (a + b)) / g


@pytest.mark.parametrize('compute', [1e9, 1e15, 1e21])
def test_the_best_size_matches_the_closed_form(compute):
  params, tokens, loss = scaling_fits.allocate(LAW, compute, six_per_parameter)
  expected = closed_form(compute)
  assert (params, tokens) == (pytest.approx(expected[0], rel=5e-3), pytest.approx(expected[1], rel=5e-3))
  assert loss == pytest.approx(float(LAW(np.array(expected)[:, None])[0]), rel=1e-6)


def test_flops_per_token_are_interpolated_in_the_ladder_and_proportional_to_size_outside():
  flops = np.array([20.0, 22.0, 160.0, 160.0]) * 10
  table = Table(('a', 'b', 'c', 'd'), np.array([1.0, 1, 16, 16]), np.full(4, 10.0), flops, np.ones(4), '')
  per_token = scaling_fits.flops_per_token(table)(np.array([0.5, 1, 4, 16, 160]))
  np.testing.assert_allclose(per_token, [10.5, 21, np.sqrt(21 * 160), 160, 1600])


def test_four_laws_are_fitted_to_a_ladder():
  table = ladder(noise=0.001)
  fits, missing = scaling_fits.fit_laws(table, num_samples=100)
  assert missing == [] and list(fits) == ['L(N)', 'L(D)', 'L(C)', 'L(N, D)']
  assert [fits[name].num_runs for name in ('L(N)', 'L(D)', 'L(N, D)')] == [6, 4, 24]
  assert fits['L(N)'].law.exponents[0] == pytest.approx(0.35, abs=0.03)
  assert fits['L(N, D)'].law.exponents == pytest.approx([0.35, 0.3], abs=0.01)
  rest = 60 / 1e7**0.3  # the term in D at the largest budget
  assert fits['L(N)'].law.entropy == pytest.approx(1.2 + rest, abs=0.05)
  # With optimal N and D, the exponent is a b / (a + b). A ladder of few sizes deviates somewhat.
  assert fits['L(C)'].law.exponents[0] == pytest.approx(0.35 * 0.3 / 0.65, abs=0.06)
  best = scaling_fits.allocate(LAW, 1e13, six_per_parameter)[2]
  assert fits['L(C)'].law(np.array([[1e13]]))[0] == pytest.approx(best, rel=0.03)
  assert 4 <= fits['L(C)'].num_runs < 24


def test_the_frontier_considers_only_the_runs_of_a_resample():
  table = ladder(noise=0.0)
  everything = scaling_fits.on_frontier(table, np.ones(24, bool))
  without = scaling_fits.on_frontier(table, ~everything)
  assert everything.any() and without.any() and not (everything & without).any()


def test_laws_that_cannot_be_fitted_are_reported():
  fits, missing = scaling_fits.fit_laws(ladder(sizes=2, budgets=6), num_samples=100)
  assert set(fits) == {'L(D)', 'L(C)'}
  assert [line.split(' is not fitted')[0] for line in missing] == ['L(N)', 'L(N, D)']


def test_the_largest_run_is_predicted_from_the_other_runs():
  table = ladder()
  test = scaling_fits.extrapolate(table, 0.9, num_samples=200)
  assert test.name == 'run23' and test.seen == table.losses[-1]
  assert test.factor == pytest.approx(table.flops[-1] / table.flops[-2])
  assert test.interval[0] < test.predicted < test.interval[1]
  assert test.predicted == pytest.approx(test.seen, rel=0.01)
  table.losses[-1] *= 2  # the prediction must not depend on the run
  assert scaling_fits.extrapolate(table, 0.9, num_samples=200).predicted == test.predicted


def test_the_intervals_of_a_plan_contain_the_truth_and_notes_report_extrapolation():
  table = ladder()
  fitted = scaling_laws.fit(('N', 'D'), table.sizes_and_tokens, table.losses, num_samples=300)
  outside = scaling_fits.plan(table, fitted, 6e15, 0.9)
  for (value, low, high), truth in zip((outside.params, outside.tokens), closed_form(6e15), strict=True):
    assert low <= value <= high and low <= truth <= high
  assert outside.decades_beyond == pytest.approx(2)
  assert any(note.startswith('D lies') for note in outside.notes)
  inside = scaling_fits.plan(table, fitted, 1e12, 0.9)
  assert inside.decades_beyond < 0 and inside.notes == ()
  for compute in (0.0, -1.0, float('nan'), float('inf')):
    with pytest.raises(ValueError, match='--compute is'):
      scaling_fits.plan(table, fitted, compute, 0.9)


def test_json_keeps_the_full_precision():
  table = ladder(sizes=4, budgets=3)
  fits, missing = scaling_fits.fit_laws(table, num_samples=100)
  test = scaling_fits.extrapolate(table, 0.9, num_samples=100)
  restored = json.loads(json.dumps(scaling_fits.as_json(fits, missing, test, 0.9)))
  assert restored['fits']['L(N, D)']['parameters']['alpha_N']['value'] == fits['L(N, D)'].law.exponents[0]
  assert restored['extrapolation']['predicted'] == test.predicted
