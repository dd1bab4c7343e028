"""Fit power laws with a constant, L = E + sum_i A_i / x_i^a_i, to the losses of training runs.

For one input this is the form of Henighan et al. 2020 (equation 1.1). For two inputs, N and D, it is the form of
Hoffmann et al. 2022 (equation 2). E is the irreducible loss.

A fit takes two steps:
1. Variable projection (Golub and Pereyra 1973). For given exponents the law is linear in E and A_i, which follow from
   non-negative least squares of the relative errors. So only the exponents are searched.
2. Minimise the sum of Huber losses of ln L, as Hoffmann et al. do (appendix D.3), with L-BFGS and an exact gradient.
   The starting points are the result of step 1 and a grid of other exponents. The Huber threshold is three times the
   noise that step 1 leaves. The loss is a sum in units of the threshold. With a mean, the optimizer would stop too
   early (Besiroglu et al. 2024).

Intervals are percentiles of a bootstrap over runs. Variable projection fits each resample, with the weights that the
Huber loss gives to the runs, so that an outlier cannot dominate a resample.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize

EXPONENTS = (0.01, 3.0)  # the range of exponents that is searched
MIN_RUNS, MIN_DECADES = 6, 2.0  # fewer runs, or decades spanned by an input, give a warning
WIDE = 0.5  # an exponent's interval that is wider than this share of the exponent gives a warning
MAX_GRADIENT = 1e-3  # largest gradient of a converged fit, in units of the Huber threshold
_LEAST_ENTROPY = 1e-6  # lower bound of E relative to the lowest loss; step 2 needs ln E
_GRID = {1: 48, 2: 12}  # grid points per exponent in step 1, by number of inputs
_STARTS = {1: 20, 2: 6}  # starting points per exponent in step 2, by number of inputs
_ZOOMS, _SHRINK = 18, 0.6  # refinements around the best grid point; together they reach 1.25 grid steps
_CHUNK = 125  # resamples fitted at a time
_ROUNDS = 3  # estimates of the noise


@dataclasses.dataclass(frozen=True)
class Law:
  """L(x) = entropy + sum_i exp(log_coefficients_i) / x_i^exponents_i; leading axes hold several laws."""

  entropy: np.ndarray  # [...]
  log_coefficients: np.ndarray  # [..., K]; -inf if the law lacks the term
  exponents: np.ndarray  # [..., K]

  def __call__(self, inputs: np.ndarray) -> np.ndarray:
    """Losses [..., N] at inputs [K, N]."""
    powers = self.log_coefficients[..., None] - self.exponents[..., None] * np.log(inputs)
    return np.asarray(self.entropy)[..., None] + np.exp(powers).sum(axis=-2)


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted law with its bootstrap samples and warnings."""

  names: tuple[str, ...]  # names of the inputs
  law: Law
  samples: Law  # R laws, one for each bootstrap resample
  num_runs: int  # runs that the law is fitted to
  decades: tuple[float, ...]  # decades that each input spans
  pure_exponent: float | None  # exponent of L = A / x^a, without E, by least squares of ln L; None with several inputs
  threshold: float  # Huber threshold in ln L
  gradient_norm: float  # largest entry of the projected gradient, in units of the threshold
  warnings: tuple[str, ...]  # reasons to doubt the fit

  def parameters(self) -> dict[str, tuple[float, np.ndarray]]:
    """The parameters E, A_x and alpha_x by name: (value, samples [R])."""
    parameters = {'E': (float(self.law.entropy), self.samples.entropy)}
    for i, name in enumerate(self.names):
      coefficients = np.exp(self.samples.log_coefficients[:, i])
      parameters[f'A_{name}'] = (float(np.exp(self.law.log_coefficients[i])), coefficients)
      parameters[f'alpha_{name}'] = (float(self.law.exponents[i]), self.samples.exponents[:, i])
    return parameters

  def correlation(self) -> float:
    """The correlation of E and the first exponent over the bootstrap; near 1, the data do not separate the two."""
    pair = np.stack([self.samples.entropy, self.samples.exponents[:, 0]])
    return float(np.corrcoef(pair)[0, 1]) if (pair.std(axis=1) > 0).all() else 0.0


def percentiles(samples: np.ndarray, coverage: float) -> tuple[float, float]:
  """The interval that contains the middle share `coverage` of the samples [R]; samples may be infinite."""
  tail = 50 * (1 - coverage)
  low, high = np.percentile(samples, [tail, 100 - tail], method='nearest')
  return float(low), float(high)


def project(
  exponents: np.ndarray, log_inputs: np.ndarray, losses: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Solve for the best entropy and coefficients at given exponents.

  This is non-negative weighted least squares of the relative errors, for R weightings of N runs and G choices of the K
  exponents.

  Args:
    exponents: [R or 1, G, K].
    log_inputs: [K, N].
    losses: [N], above 0.
    weights: [R, N].

  Returns:
    Sums of squares [R, G], and entropy and coefficients [R, G, 1 + K].
  """
  powers = np.exp(-np.einsum('rgk,kn->rgkn', exponents, log_inputs))
  columns = np.concatenate([np.ones_like(powers[:, :, :1]), powers], axis=2) / losses  # [R|1, G, 1 + K, N]
  width = columns.shape[2]
  pairs = list(itertools.combinations_with_replacement(range(width), 2))
  products = np.stack([columns[:, :, a] * columns[:, :, b] for a, b in pairs], axis=2)
  moments, target = _weighted(weights, products), _weighted(weights, columns)
  gram = np.empty((*moments.shape[:-1], width, width))
  for i, (a, b) in enumerate(pairs):
    gram[..., a, b] = gram[..., b, a] = moments[..., i]
  # Columns can coincide, e.g. in a resample with a single size. The ridge then picks one of the equivalent solutions.
  gram += 1e-13 * np.trace(gram, axis1=-2, axis2=-1)[..., None, None] * np.eye(width)
  linear = _nonnegative(gram.reshape(-1, width, width), target.reshape(-1, width)).reshape(target.shape)
  return weights.sum(axis=1)[:, None] - (linear * target).sum(axis=-1), linear


def _weighted(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Sum values [R or 1, G, P, N] over N with weights [R, N]: [R, G, P]."""
  if len(values) == 1:
    return np.tensordot(weights, values[0], axes=(1, 2))
  return (values @ weights[:, None, :, None])[..., 0]


def _nonnegative(gram: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Minimise x G x / 2 - t x over x [M, K] >= 0, for M problems with matrices G [M, K, K] and vectors t [M, K].

  K is at most 3, so we solve the problem without bounds on every subset of columns and take the best feasible solution.
  """
  width = target.shape[1]
  solution = np.linalg.solve(gram, target[..., None])[..., 0]
  (infeasible,) = np.nonzero((solution < 0).any(axis=1))  # in the other problems the bounds are inactive
  gram, target = gram[infeasible], target[infeasible]
  best_gain, best = np.full(len(infeasible), -np.inf), np.zeros_like(target)
  for size in range(1, width):
    for subset in itertools.combinations(range(width), size):
      index = np.array(subset)
      values = np.linalg.solve(gram[:, index[:, None], index], target[:, index, None])[..., 0]
      gain = (values * target[:, index]).sum(axis=1)
      is_better = (values >= 0).all(axis=1) & (gain > best_gain)
      candidate = np.zeros_like(target)
      candidate[:, index] = values
      best_gain, best = np.where(is_better, gain, best_gain), np.where(is_better[:, None], candidate, best)
  solution[infeasible] = best
  return solution


def _grid(num_inputs: int, count: int) -> np.ndarray:
  """A grid of exponents [G, K], evenly spaced in the logarithm."""
  axis = np.geomspace(*EXPONENTS, count)
  return np.stack(np.meshgrid(*[axis] * num_inputs, indexing='ij'), axis=-1).reshape(-1, num_inputs)


def _search(log_inputs: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Run variable projection for each row of weights [R, N]: exponents [R, K], entropy and coefficients [R, 1 + K]."""
  num_inputs = len(log_inputs)
  count = _GRID[num_inputs]
  step = np.log(EXPONENTS[1] / EXPONENTS[0]) / (count - 1)
  grid = _grid(num_inputs, count)
  offsets = np.array(list(itertools.product((-0.5, 0.0, 0.5), repeat=num_inputs)))
  chunks = []
  for begin in range(0, len(weights), _CHUNK):
    chunk = weights[begin : begin + _CHUNK]
    errors, _ = project(grid[None], log_inputs, losses, chunk)
    best = grid[errors.argmin(axis=1)]
    for zoom in range(_ZOOMS):
      local = np.clip(best[:, None] * np.exp(offsets * step * _SHRINK**zoom), *EXPONENTS)
      errors, linear = project(local, log_inputs, losses, chunk)
      winners = np.arange(len(chunk)), errors.argmin(axis=1)
      best = local[winners]
    chunks.append((best, linear[winners]))
  return np.concatenate([exponents for exponents, _ in chunks]), np.concatenate([linear for _, linear in chunks])


def _log_law(theta: np.ndarray, log_inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """ln L [N] for theta = (ln E, ln A_1.., a_1..), and the share of each term in L, [1 + K, N]."""
  num_inputs = len(log_inputs)
  terms = theta[1 : 1 + num_inputs, None] - theta[1 + num_inputs :, None] * log_inputs
  terms = np.concatenate([np.full_like(terms[:1], theta[0]), terms])
  total = np.logaddexp.reduce(terms, axis=0)
  return total, np.exp(terms - total)


def huber(
  theta: np.ndarray, log_inputs: np.ndarray, log_losses: np.ndarray, threshold: float
) -> tuple[float, np.ndarray]:
  """The sum of Huber losses of (ln L - log_losses) / threshold, and its gradient [1 + 2K] with respect to theta.

  Args:
    theta: (ln E, ln A_1.., a_1..), [1 + 2K].
    log_inputs: [K, N].
    log_losses: [N].
    threshold: the Huber threshold in ln L.
  """
  total, shares = _log_law(theta, log_inputs)
  errors = (total - log_losses) / threshold
  slope = np.clip(errors, -1, 1)
  value = np.where(np.abs(errors) <= 1, errors**2 / 2, np.abs(errors) - 0.5).sum()
  gradient = np.concatenate([shares @ slope, -((shares[1:] * log_inputs) @ slope)]) / threshold
  return float(value), gradient


def _theta(exponents: np.ndarray, linear: np.ndarray) -> np.ndarray:
  """theta = (ln E, ln A_i, a_i) [..., 1 + 2K] from exponents [..., K] and entropy and coefficients [..., 1 + K]."""
  return np.concatenate([np.log(np.maximum(linear, 1e-300)), exponents], axis=-1)


def _starts(log_inputs: np.ndarray, losses: np.ndarray) -> np.ndarray:
  """Starting points theta [S, 1 + 2K]: a grid of exponents, with the best entropy and coefficients for each."""
  grid = _grid(len(log_inputs), _STARTS[len(log_inputs)])
  _, linear = project(grid[None], log_inputs, losses, np.ones((1, len(losses))))
  return _theta(grid, linear[0])


def _minimise(
  log_inputs: np.ndarray, losses: np.ndarray, threshold: float, starts: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
  """Minimise the Huber loss from several starting points: the best theta, and the norm of its projected gradient."""
  num_inputs, log_losses = len(log_inputs), np.log(losses)
  low, high = log_losses.min(), log_losses.max()
  bounds = [(low + np.log(_LEAST_ENTROPY), high + 10)] * (1 + num_inputs) + [EXPONENTS] * num_inputs
  lower, upper = np.array(bounds).T
  best = None
  for start in starts:
    result = optimize.minimize(
      huber, np.clip(start, lower, upper), (log_inputs, log_losses, threshold), 'L-BFGS-B', jac=True, bounds=bounds,
      options={'ftol': 1e-15, 'gtol': 1e-9, 'maxiter': 5_000, 'maxfun': 20_000, 'maxcor': 30},
    )  # fmt: skip
    best = result if best is None or result.fun < best.fun else best
  assert best is not None  # there is at least one starting point
  # The gradient is in units of the threshold. The projection removes steps that leave the bounds.
  gradient = huber(best.x, log_inputs, log_losses, threshold)[1] * threshold
  projected = best.x - np.clip(best.x - gradient, lower, upper)
  return best.x, float(np.abs(projected).max())


def fit(
  names: Sequence[str],
  inputs: np.ndarray,
  losses: np.ndarray,
  *,
  num_samples: int = 1_000,
  seed: int = 0,
  threshold: float | None = None,
  chosen: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Fit:
  """Fit L = E + sum_i A_i / x_i^a_i to N runs.

  Args:
    names: the names of the inputs.
    inputs: [K, N], above 0; K is 1 or 2.
    losses: [N], above 0.
    num_samples: resamples of the bootstrap.
    seed: the seed of the bootstrap.
    threshold: the Huber threshold in ln L; None uses three times the noise.
    chosen: function from the mask of the runs in a resample, bool [N], to the mask of the runs to fit, bool [N]; None
      fits all.

  Raises:
    ValueError: there are too few runs, or too few different values of an input.
  """
  inputs, losses = np.asarray(inputs, np.float64), np.asarray(losses, np.float64)
  all_runs = np.ones(len(losses), bool)
  mask = chosen(all_runs) if chosen else all_runs
  _check(names, inputs[:, mask], losses[mask])
  middle = np.log(inputs[:, mask]).mean(axis=1)  # without centring, exponents and coefficients correlate strongly
  log_inputs = np.log(inputs) - middle[:, None]
  fit_inputs, fit_losses = log_inputs[:, mask], losses[mask]
  exponents, linear = (rows[0] for rows in _search(fit_inputs, fit_losses, np.ones((1, len(fit_losses)))))
  theta = _theta(exponents, linear)
  starts, huber_threshold = [theta, *_starts(fit_inputs, fit_losses)], threshold or np.inf
  for _ in range(_ROUNDS):  # an outlier pulls the first fit and so inflates its noise; a robust fit has less noise
    huber_threshold = threshold or min(huber_threshold, 3 * _noise(fit_inputs, fit_losses, theta))
    theta, gradient_norm = _minimise(fit_inputs, fit_losses, huber_threshold, starts)
    starts = [theta]
  weights = np.ones(len(losses))
  errors = np.abs(_log_law(theta, fit_inputs)[0] - np.log(fit_losses))
  weights[mask] = np.minimum(1, huber_threshold / np.maximum(errors, 1e-300))
  counts = np.random.default_rng(seed).multinomial(len(losses), np.full(len(losses), 1 / len(losses)), num_samples)
  if chosen:
    counts = counts * np.stack([chosen(row > 0) for row in counts])
  sampled = _search(log_inputs, losses, counts * weights)
  law = _uncentred(theta[1 + len(inputs) :], np.exp(theta[: 1 + len(inputs)]), middle)
  result = Fit(
    names=tuple(names),
    law=law,
    samples=_uncentred(*sampled, middle),
    num_runs=len(fit_losses),
    decades=tuple(np.ptp(np.log10(inputs[:, mask]), axis=1).tolist()),
    pure_exponent=-float(np.polyfit(fit_inputs[0], np.log(fit_losses), 1)[0]) if len(inputs) == 1 else None,
    threshold=huber_threshold,
    gradient_norm=gradient_norm,
    warnings=(),
  )
  return dataclasses.replace(result, warnings=tuple(_warnings(result, fit_losses.min())))


def _check(names: Sequence[str], inputs: np.ndarray, losses: np.ndarray) -> None:
  """Check that a law has enough runs and enough different values of each input."""
  for name, values in zip(names, inputs, strict=True):
    if len(np.unique(values)) < 3:
      raise ValueError(
        f'A law in {name} needs runs with at least three different values of {name}; given {len(np.unique(values))}.'
      )
  least = 2 + 2 * len(inputs)
  if len(losses) < least:
    raise ValueError(f'A law in {", ".join(names)} needs {least} runs or more; given {len(losses)}.')


def _noise(log_inputs: np.ndarray, losses: np.ndarray, theta: np.ndarray) -> float:
  """A robust standard deviation of ln L about a law: the scaled median error, corrected for the fitted parameters."""
  errors = _log_law(theta, log_inputs)[0] - np.log(losses)
  freedom = max(1, len(losses) - len(theta))
  return max(1.4826 * float(np.median(np.abs(errors))) * (len(losses) / freedom) ** 0.5, 1e-6)


def _uncentred(exponents: np.ndarray, linear: np.ndarray, middle: np.ndarray) -> Law:
  """Convert a law of inputs divided by exp(middle) to the law of the inputs themselves."""
  with np.errstate(divide='ignore'):
    logs = np.log(linear[..., 1:])
  return Law(linear[..., 0], logs + exponents * middle, exponents)


def _warnings(fit: Fit, least_loss: float) -> list[str]:
  """Reasons to doubt a fit; `least_loss` is the lowest loss of its runs."""
  law, samples, warnings = fit.law, fit.samples, []
  if fit.num_runs < MIN_RUNS:
    warnings.append(f'only {fit.num_runs} runs; use {MIN_RUNS} or more')
  for i, name in enumerate(fit.names):
    exponent, span = law.exponents[i], fit.decades[i]
    if span < MIN_DECADES:
      warnings.append(f'{name} spans only {span:.1f} decades; use {MIN_DECADES:.0f} or more')
    if not EXPONENTS[0] * 1.01 < exponent < EXPONENTS[1] / 1.01:
      warnings.append(f'the exponent of {name} is {exponent:.3g}, at the end of the searched range')
    low, high = percentiles(samples.exponents[:, i], 0.9)
    if high - low > WIDE * exponent:
      warnings.append(f'the exponent of {name} is uncertain: 90% of the resamples give {low:.3f} to {high:.3f}')
    absent = np.mean(np.isneginf(samples.log_coefficients[:, i]))
    if absent > 0.05:
      warnings.append(f'{absent:.0%} of the resamples have no term in {name}')
  if law.entropy < 10 * _LEAST_ENTROPY * least_loss:
    warnings.append('E is at its lower bound, 0: the losses do not deviate measurably from a pure power law')
  if fit.gradient_norm > MAX_GRADIENT:
    warnings.append(f'the fit did not converge: gradient {fit.gradient_norm:.1e}, at most {MAX_GRADIENT:.0e} expected')
  return warnings
