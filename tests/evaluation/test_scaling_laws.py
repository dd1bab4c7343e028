import itertools

import numpy as np
import pytest
from scipy import optimize

from dalle_jax.evaluation import scaling_laws
from dalle_jax.evaluation.scaling_laws import Law

CHINCHILLA = {'E': 1.69, 'A_N': 406.4, 'alpha_N': 0.34, 'A_D': 410.7, 'alpha_D': 0.28}  # Hoffmann et al. 2022, D.3


def grid(sizes, budgets):
  return np.stack([axis.ravel() for axis in np.meshgrid(sizes, budgets, indexing='ij')])


def chinchilla(inputs):
  return 1.69 + 406.4 / inputs[0] ** 0.34 + 410.7 / inputs[1] ** 0.28


def noisy(losses, seed, noise=0.003):
  return losses * np.exp(noise * np.random.default_rng(seed).standard_normal(len(losses)))


def covers(fitted, truth, coverage):
  is_covered = {}
  for name, (_, samples) in fitted.parameters().items():
    low, high = scaling_laws.percentiles(samples, coverage)
    is_covered[name] = low <= truth[name] <= high
  return is_covered


def test_a_law_is_a_sum_of_powers_and_leading_axes_hold_several_laws():
  law = Law(np.array([1.0, 2.0]), np.log([[3.0, 4.0], [5.0, 6.0]]), np.array([[0.5, 1.0], [1.0, 2.0]]))
  inputs = np.array([[4.0, 9.0, 16.0], [1.0, 2.0, 4.0]])
  np.testing.assert_allclose(law(inputs)[0], 1 + 3 / np.array([2.0, 3.0, 4.0]) + 4 / inputs[1])
  np.testing.assert_allclose(law(inputs)[1], 2 + 5 / inputs[0] + 6 / inputs[1] ** 2)
  absent = Law(np.array(1.0), np.array([-np.inf]), np.array([0.5]))
  assert absent(inputs[:1]).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize('num_inputs', [1, 2])
def test_projection_solves_nonnegative_least_squares(num_inputs):
  rng = np.random.default_rng(0)
  logs, losses = rng.uniform(-2, 2, (num_inputs, 9)), rng.uniform(1, 3, 9)
  weights = rng.integers(0, 3, (4, 9)).astype(float)
  exponents = rng.uniform(0.1, 1.5, (4, 5, num_inputs))
  errors, linear = scaling_laws.project(exponents, logs, losses, weights)
  for r, g in itertools.product(range(4), range(5)):
    columns = np.stack([np.ones(9), *np.exp(-exponents[r, g][:, None] * logs)], axis=1) / losses[:, None]
    root = np.sqrt(weights[r])
    expected, norm = optimize.nnls(root[:, None] * columns, root)
    np.testing.assert_allclose(linear[r, g], expected, atol=1e-7)
    np.testing.assert_allclose(errors[r, g], norm**2, atol=1e-9)
  shared, _ = scaling_laws.project(exponents[:1], logs, losses, weights)
  np.testing.assert_allclose(shared[0], errors[0])


def test_the_gradient_of_the_huber_loss_is_exact_on_both_sides_of_the_threshold():
  logs = np.array([[-1.0, 0.0, 0.5, 2.0], [0.3, -0.6, 1.0, -1.0]])
  theta, targets = np.array([0.1, -0.5, 0.2, 0.4, 0.7]), np.array([0.9, 1.2, 1.0, 3.0])
  value, gradient = scaling_laws.huber(theta, logs, targets, 0.5)
  numeric = optimize.approx_fprime(theta, lambda t: scaling_laws.huber(t, logs, targets, 0.5)[0], 1e-7)
  np.testing.assert_allclose(gradient, numeric, rtol=1e-5)
  law = np.log(np.exp(0.1) + np.exp(-0.5 - 0.4 * logs[0]) + np.exp(0.2 - 0.7 * logs[1]))
  u = np.abs(law - targets) / 0.5
  assert (u > 1).any() and (u < 1).any()
  assert value == pytest.approx(np.where(u <= 1, u**2 / 2, u - 0.5).sum())


@pytest.mark.parametrize(('entropy', 'exponent', 'scale'), [(2.0, 0.16, 1e10), (0.0, 0.05, 1e14), (3.5, 0.9, 1e5)])
def test_a_law_without_noise_is_recovered(entropy, exponent, scale):
  inputs = np.geomspace(scale, 1e4 * scale, 10)[None]
  losses = entropy + (inputs[0] / scale) ** -exponent
  fitted = scaling_laws.fit(['C'], inputs, losses, num_samples=20)
  assert fitted.law.exponents[0] == pytest.approx(exponent, rel=2e-3)
  assert fitted.law.entropy == pytest.approx(entropy, abs=2e-3)
  np.testing.assert_allclose(fitted.law(inputs), losses, rtol=1e-5)
  assert fitted.gradient_norm < scaling_laws.MAX_GRADIENT
  if entropy == 0:
    assert fitted.pure_exponent == pytest.approx(exponent, rel=1e-9)
  else:
    assert 0 < fitted.pure_exponent < exponent


def test_published_constants_are_recovered_from_losses_made_with_them():
  inputs = grid(np.geomspace(5e7, 1.6e10, 9), np.geomspace(5e9, 5e11, 6))
  fitted = scaling_laws.fit(['N', 'D'], inputs, noisy(chinchilla(inputs), seed=1))
  assert all(covers(fitted, CHINCHILLA, 0.9).values())
  for name, value in (('E', 0.03), ('alpha_N', 0.02), ('alpha_D', 0.02)):
    low, high = scaling_laws.percentiles(fitted.parameters()[name][1], 0.9)
    assert high - low < 2 * value  # the intervals are narrow enough to be useful
  assert fitted.warnings == ()
  assert 0.003 < fitted.threshold < 0.02  # three times the noise
  other = scaling_laws.fit(['N', 'D'], inputs, noisy(chinchilla(inputs), seed=1), num_samples=2, threshold=1e-3)
  assert other.threshold == 1e-3 and other.law.entropy != fitted.law.entropy


def test_an_outlier_moves_the_fit_less_than_a_least_squares_fit():
  inputs = np.geomspace(1e10, 1e14, 12)[None]
  losses = noisy(2 + (inputs[0] / 1e10) ** -0.16, seed=3)
  losses[5] *= 1.05
  fitted = scaling_laws.fit(['C'], inputs, losses)
  least_squares = optimize.curve_fit(lambda x, e, a, k: e + a * x**-k, inputs[0] / 1e12, losses, (2, 1, 0.16))[0][2]
  assert abs(fitted.law.exponents[0] - 0.16) < abs(least_squares - 0.16)
  low, high = scaling_laws.percentiles(fitted.samples.exponents[:, 0], 0.9)
  assert low < 0.16 < high and high - low < 0.16


def test_the_same_seed_gives_the_same_intervals():
  inputs = np.geomspace(1e4, 1e7, 8)[None]
  losses = noisy(1 + 9 / inputs[0] ** 0.3, seed=0)
  one, same, other = (scaling_laws.fit(['N'], inputs, losses, num_samples=50, seed=seed) for seed in (0, 0, 1))
  assert (one.samples.exponents == same.samples.exponents).all()
  assert (one.samples.exponents != other.samples.exponents).any()
  assert one.law.exponents == other.law.exponents


def test_only_chosen_runs_are_fitted_and_each_resample_chooses_again():
  inputs = np.geomspace(1e4, 1e7, 12)[None]
  losses = 1 + 9 / inputs[0] ** 0.3
  losses[::4] += 1.0
  calls = []

  def chosen(held):
    calls.append(held)
    return held & (np.arange(12) % 4 != 0)

  fitted = scaling_laws.fit(['N'], inputs, losses, num_samples=30, chosen=chosen)
  assert fitted.num_runs == 9
  assert fitted.law.exponents[0] == pytest.approx(0.3, rel=1e-3)
  assert len(calls) == 31 and 0 < sum(held.all() for held in calls) < 31


@pytest.mark.parametrize(
  ('inputs', 'losses', 'words'),
  [
    (np.geomspace(1e4, 1e7, 5), lambda x: 1 + 9 / x**0.3, 'only 5 runs'),
    (np.geomspace(1e4, 1e5, 9), lambda x: 1 + 9 / x**0.3, 'spans only 1.0 decades'),
    (np.geomspace(1e4, 1e8, 9), lambda x: 9 / x**0.05, 'E is at its lower bound'),
    (np.geomspace(1e4, 1e8, 9), lambda x: noisy(2 + 0.001 * x / x, 0, 0.01), 'uncertain'),
    (np.geomspace(1, 1e3, 9), lambda x: 1 + 9 / x**5, 'at the end of the searched range'),
  ],
)
def test_reasons_to_doubt_a_fit_are_warnings(inputs, losses, words):
  fitted = scaling_laws.fit(['N'], inputs[None], losses(inputs), num_samples=20)
  assert any(words in warning for warning in fitted.warnings), fitted.warnings


def test_too_few_runs_or_sizes_are_refused():
  with pytest.raises(ValueError, match='needs runs with at least three different values of N; given 2'):
    scaling_laws.fit(['N'], np.array([[1.0, 2.0] * 3]), np.ones(6))
  with pytest.raises(ValueError, match='needs 6 runs or more; given 4'):
    scaling_laws.fit(['N', 'D'], np.arange(1.0, 9).reshape(2, 4), np.ones(4))


def test_percentile_intervals_contain_their_share():
  samples = np.arange(101.0)
  assert scaling_laws.percentiles(samples, 0.9) == (5.0, 95.0)
  assert scaling_laws.percentiles(np.append(samples, np.inf), 0.5)[1] < np.inf


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_stated():
  inputs = grid(np.geomspace(1e4, 1e6, 6), np.geomspace(1e5, 1e7, 4))
  truth = {'E': 1.2, 'A_N': 20.0, 'alpha_N': 0.35, 'A_D': 60.0, 'alpha_D': 0.35}
  losses = 1.2 + 20 / inputs[0] ** 0.35 + 60 / inputs[1] ** 0.35
  hits = [covers(scaling_laws.fit(['N', 'D'], inputs, noisy(losses, seed)), truth, 0.9) for seed in range(60)]
  for name in truth:
    share = np.mean([hit[name] for hit in hits])
    print(name, share)
    assert 0.7 <= share <= 1.0
