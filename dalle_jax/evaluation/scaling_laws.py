"""Power laws with a constant, L = E + sum_i A_i / x_i^a_i, fitted to the losses of training runs.

The form is that of Henighan et al. 2020 (equation 1.1) for one input and of Hoffmann et al. 2022 (equation 2) for
two, N and D. E is the loss that no model undercuts, the rest is reducible.

A fit takes two steps. Variable projection (Golub and Pereyra 1973): given the exponents the law is linear, and its
other parameters follow from least squares of relative errors without negative values; so only exponents are searched.
Then, from there and from a grid of other exponents, the sum of Huber losses of ln L is minimised, as Hoffmann et al.
do (appendix D.3), with L-BFGS and an exact gradient. The threshold is three times the noise that the first step leaves,
and the loss is a sum in units of it, since with a mean the optimizer stops too early (Besiroglu et al. 2024).

Intervals are percentiles of a bootstrap over runs, each resample fitted by variable projection with the weights that
the Huber loss gives the runs, so that an outlier cannot rule a resample.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize

EXPONENTS = (0.01, 3.0)  # the range that is searched
MIN_RUNS, MIN_DECADES = 6, 2.0  # below, a warning
WIDE = 0.5  # an interval of an exponent is called wide from this share of the exponent
MAX_GRADIENT = 1e-3  # of the Huber loss in units of its threshold
_LEAST_ENTROPY = 1e-6  # of the lowest loss, in the second step, which works with logarithms
_GRID = {1: 48, 2: 12}  # exponents tried in each direction, by number of inputs
_STARTS = {1: 20, 2: 6}
_ZOOMS, _SHRINK = 18, 0.6  # steps around the best of the grid; together they reach 1.25 of its distances
_CHUNK = 125  # resamples at a time
_ROUNDS = 3  # of estimating the noise


@dataclasses.dataclass(frozen=True)
class Law:
  """L(x) = entropy + sum_i exp(log_coefficients_i) / x_i^exponents_i, or many such laws along leading axes."""

  entropy: np.ndarray  # [...]
  log_coefficients: np.ndarray  # [..., K]; -inf where a term is absent
  exponents: np.ndarray  # [..., K]

  def __call__(self, inputs: np.ndarray) -> np.ndarray:
    """Losses [..., N] at inputs [K, N]."""
    powers = self.log_coefficients[..., None] - self.exponents[..., None] * np.log(inputs)
    return np.asarray(self.entropy)[..., None] + np.exp(powers).sum(axis=-2)


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law, how sure it is, and what speaks against it."""

  names: tuple[str, ...]  # of the inputs
  law: Law
  samples: Law  # [R] of the bootstrap
  num_runs: int
  decades: tuple[float, ...]  # that each input spans
  pure_exponent: float | None  # of L = A / x^a, without E, by least squares of ln L; None with several inputs
  threshold: float  # of the Huber loss, in ln L
  gradient_norm: float  # the largest entry where no bound is in the way, in units of the threshold
  warnings: tuple[str, ...]

  def parameters(self) -> dict[str, tuple[float, np.ndarray]]:
    """Name -> (value, samples [R])."""
    found = {'E': (float(self.law.entropy), self.samples.entropy)}
    for i, name in enumerate(self.names):
      coefficients = np.exp(self.samples.log_coefficients[:, i])
      found[f'A_{name}'] = (float(np.exp(self.law.log_coefficients[i])), coefficients)
      found[f'alpha_{name}'] = (float(self.law.exponents[i]), self.samples.exponents[:, i])
    return found

  def correlation(self) -> float:
    """Of E and the first exponent over the bootstrap; near 1, the one can be traded for the other."""
    pair = np.stack([self.samples.entropy, self.samples.exponents[:, 0]])
    return float(np.corrcoef(pair)[0, 1]) if (pair.std(axis=1) > 0).all() else 0.0


def percentiles(samples: np.ndarray, coverage: float) -> tuple[float, float]:
  """The interval that holds the middle share `coverage` of the samples [R], some of which may be infinite."""
  tail = 50 * (1 - coverage)
  low, high = np.percentile(samples, [tail, 100 - tail], method='nearest')
  return float(low), float(high)


def project(
  exponents: np.ndarray, log_inputs: np.ndarray, losses: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The best entropy and coefficients for given exponents: weighted least squares of relative errors, none negative.

  With so few columns, the solution is the best feasible one among those of all subsets of columns.

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
  # Where columns coincide, as in a resample of a single size, any of the equal solutions will do.
  gram += 1e-13 * np.trace(gram, axis1=-2, axis2=-1)[..., None, None] * np.eye(width)
  linear = _nonnegative(gram.reshape(-1, width, width), target.reshape(-1, width)).reshape(target.shape)
  return weights.sum(axis=1)[:, None] - (linear * target).sum(axis=-1), linear


def _weighted(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Sums over N of values [R or 1, G, P, N], weighted by [R, N]: [R, G, P]."""
  if len(values) == 1:
    return np.tensordot(weights, values[0], axes=(1, 2))
  return (values @ weights[:, None, :, None])[..., 0]


def _nonnegative(gram: np.ndarray, target: np.ndarray) -> np.ndarray:
  """The x [M, K] >= 0 of least x G x / 2 - t x, for G [M, K, K] and t [M, K]: the best of those on some columns."""
  width = target.shape[1]
  chosen = np.linalg.solve(gram, target[..., None])[..., 0]
  (wrong,) = np.nonzero((chosen < 0).any(axis=1))  # elsewhere the free solution is the bounded one
  gram, target = gram[wrong], target[wrong]
  best, found = np.full(len(wrong), -np.inf), np.zeros_like(target)
  for size in range(1, width):
    for subset in itertools.combinations(range(width), size):
      index = np.array(subset)
      part = np.linalg.solve(gram[:, index[:, None], index], target[:, index, None])[..., 0]
      gain = (part * target[:, index]).sum(axis=1)
      better = (part >= 0).all(axis=1) & (gain > best)
      whole = np.zeros_like(target)
      whole[:, index] = part
      best, found = np.where(better, gain, best), np.where(better[:, None], whole, found)
  chosen[wrong] = found
  return chosen


def _grid(num_inputs: int, count: int) -> np.ndarray:
  """Exponents [G, K] at even distances in logarithm."""
  axis = np.geomspace(*EXPONENTS, count)
  return np.stack(np.meshgrid(*[axis] * num_inputs, indexing='ij'), axis=-1).reshape(-1, num_inputs)


def _search(log_inputs: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Variable projection for each row of weights [R, N]: exponents [R, K], entropy and coefficients [R, 1 + K]."""
  num_inputs = len(log_inputs)
  count = _GRID[num_inputs]
  step = np.log(EXPONENTS[1] / EXPONENTS[0]) / (count - 1)
  grid = _grid(num_inputs, count)
  offsets = np.array(list(itertools.product((-0.5, 0.0, 0.5), repeat=num_inputs)))
  found = []
  for begin in range(0, len(weights), _CHUNK):
    part = weights[begin : begin + _CHUNK]
    errors, _ = project(grid[None], log_inputs, losses, part)
    best = grid[errors.argmin(axis=1)]
    for zoom in range(_ZOOMS):
      local = np.clip(best[:, None] * np.exp(offsets * step * _SHRINK**zoom), *EXPONENTS)
      errors, linear = project(local, log_inputs, losses, part)
      at = np.arange(len(part)), errors.argmin(axis=1)
      best = local[at]
    found.append((best, linear[at]))
  return np.concatenate([e for e, _ in found]), np.concatenate([c for _, c in found])


def _log_law(theta: np.ndarray, log_inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """ln L [N] of parameters (ln E, ln A_1.., a_1..), and the shares of its terms [1 + K, N]."""
  num_inputs = len(log_inputs)
  terms = theta[1 : 1 + num_inputs, None] - theta[1 + num_inputs :, None] * log_inputs
  terms = np.concatenate([np.full_like(terms[:1], theta[0]), terms])
  total = np.logaddexp.reduce(terms, axis=0)
  return total, np.exp(terms - total)


def huber(
  theta: np.ndarray, log_inputs: np.ndarray, log_losses: np.ndarray, threshold: float
) -> tuple[float, np.ndarray]:
  """The sum of Huber losses of (ln L - log_losses) / threshold, and its gradient by (ln E, ln A_i, a_i) [1 + 2K]."""
  total, shares = _log_law(theta, log_inputs)
  errors = (total - log_losses) / threshold
  slope = np.clip(errors, -1, 1)
  value = np.where(np.abs(errors) <= 1, errors**2 / 2, np.abs(errors) - 0.5).sum()
  gradient = np.concatenate([shares @ slope, -((shares[1:] * log_inputs) @ slope)]) / threshold
  return float(value), gradient


def _theta(exponents: np.ndarray, linear: np.ndarray) -> np.ndarray:
  """(ln E, ln A_i, a_i) [..., 1 + 2K] from exponents [..., K] and entropy and coefficients [..., 1 + K]."""
  return np.concatenate([np.log(np.maximum(linear, 1e-300)), exponents], axis=-1)


def _starts(log_inputs: np.ndarray, losses: np.ndarray) -> np.ndarray:
  """A grid of exponents, each with what fits best to it: [S, 1 + 2K]."""
  grid = _grid(len(log_inputs), _STARTS[len(log_inputs)])
  _, linear = project(grid[None], log_inputs, losses, np.ones((1, len(losses))))
  return _theta(grid, linear[0])


def _minimise(
  log_inputs: np.ndarray, losses: np.ndarray, threshold: float, starts: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
  """The parameters (ln E, ln A_i, a_i) of the least Huber loss over all starts, and the norm of its gradient there."""
  num_inputs, log_losses = len(log_inputs), np.log(losses)
  low, high = log_losses.min(), log_losses.max()
  bounds = [(low + np.log(_LEAST_ENTROPY), high + 10)] * (1 + num_inputs) + [EXPONENTS] * num_inputs
  lower, upper = np.array(bounds).T
  best = None
  for start in starts:
    found = optimize.minimize(
      huber, np.clip(start, lower, upper), (log_inputs, log_losses, threshold), 'L-BFGS-B', jac=True, bounds=bounds,
      options={'ftol': 1e-15, 'gtol': 1e-9, 'maxiter': 5_000, 'maxfun': 20_000, 'maxcor': 30},
    )  # fmt: skip
    best = found if best is None or found.fun < best.fun else best
  # In units of the threshold, as the loss is; steps that a bound forbids do not count.
  gradient = huber(best.x, log_inputs, log_losses, threshold)[1] * threshold
  free = best.x - np.clip(best.x - gradient, lower, upper)
  return best.x, float(np.abs(free).max())


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
  """Fits L = E + sum_i A_i / x_i^a_i.

  Args:
    names: of the inputs, for messages.
    inputs: [K, N], above 0; K is 1 or 2.
    losses: [N], above 0.
    num_samples: resamples of the bootstrap.
    seed: of the bootstrap.
    threshold: of the Huber loss, in ln L; None: three times the noise.
    chosen: which of the runs that a resample holds, bool [N], are fitted, bool [N]; None: all of them.

  Raises:
    ValueError: there are too few runs, or too few different values of an input.
  """
  inputs, losses = np.asarray(inputs, np.float64), np.asarray(losses, np.float64)
  everything = np.ones(len(losses), bool)
  mask = chosen(everything) if chosen else everything
  _check(names, inputs[:, mask], losses[mask])
  middle = np.log(inputs[:, mask]).mean(axis=1)  # centred, or exponents and coefficients would be nearly one parameter
  log_inputs = np.log(inputs) - middle[:, None]
  kept, used = log_inputs[:, mask], losses[mask]
  exponents, linear = (part[0] for part in _search(kept, used, np.ones((1, len(used)))))
  theta = _theta(exponents, linear)
  starts, found = [theta, *_starts(kept, used)], threshold or np.inf
  for _ in range(_ROUNDS):  # the noise about a robust fit is less than about one that an outlier has pulled
    found = threshold or min(found, 3 * _noise(kept, used, theta))
    theta, gradient_norm = _minimise(kept, used, found, starts)
    starts = [theta]
  weights = np.ones(len(losses))
  errors = np.abs(_log_law(theta, kept)[0] - np.log(used))
  weights[mask] = np.minimum(1, found / np.maximum(errors, 1e-300))
  counts = np.random.default_rng(seed).multinomial(len(losses), np.full(len(losses), 1 / len(losses)), num_samples)
  if chosen:
    counts = counts * np.stack([chosen(row > 0) for row in counts])
  sampled = _search(log_inputs, losses, counts * weights)
  law = _uncentred(theta[1 + len(inputs) :], np.exp(theta[: 1 + len(inputs)]), middle)
  result = Fit(
    names=tuple(names),
    law=law,
    samples=_uncentred(*sampled, middle),
    num_runs=len(used),
    decades=tuple(np.ptp(np.log10(inputs[:, mask]), axis=1).tolist()),
    pure_exponent=-float(np.polyfit(kept[0], np.log(used), 1)[0]) if len(inputs) == 1 else None,
    threshold=found,
    gradient_norm=gradient_norm,
    warnings=(),
  )
  return dataclasses.replace(result, warnings=tuple(_warnings(result, used.min())))


def _check(names: Sequence[str], inputs: np.ndarray, losses: np.ndarray) -> None:
  for name, values in zip(names, inputs, strict=True):
    if len(np.unique(values)) < 3:
      raise ValueError(f'A law in {name} needs runs at three different {name} or more; given {len(np.unique(values))}.')
  least = 2 + 2 * len(inputs)
  if len(losses) < least:
    raise ValueError(f'A law in {", ".join(names)} needs {least} runs or more; given {len(losses)}.')


def _noise(log_inputs: np.ndarray, losses: np.ndarray, theta: np.ndarray) -> float:
  """A robust standard deviation of ln L about a law: the median distance, for as many parameters as it has."""
  errors = _log_law(theta, log_inputs)[0] - np.log(losses)
  freedom = max(1, len(losses) - len(theta))
  return max(1.4826 * float(np.median(np.abs(errors))) * (len(losses) / freedom) ** 0.5, 1e-6)


def _uncentred(exponents: np.ndarray, linear: np.ndarray, middle: np.ndarray) -> Law:
  """The law of the inputs themselves, from the one of inputs divided by exp(middle)."""
  with np.errstate(divide='ignore'):
    logs = np.log(linear[..., 1:])
  return Law(linear[..., 0], logs + exponents * middle, exponents)


def _warnings(fit: Fit, least_loss: float) -> list[str]:
  law, samples, found = fit.law, fit.samples, []
  if fit.num_runs < MIN_RUNS:
    found.append(f'only {fit.num_runs} runs; take {MIN_RUNS} or more')
  for i, name in enumerate(fit.names):
    exponent, span = law.exponents[i], fit.decades[i]
    if span < MIN_DECADES:
      found.append(f'{name} spans only {span:.1f} decades; take {MIN_DECADES:.0f} or more')
    if not EXPONENTS[0] * 1.01 < exponent < EXPONENTS[1] / 1.01:
      found.append(f'the exponent of {name} is {exponent:.3g}, at the end of what is searched')
    low, high = percentiles(samples.exponents[:, i], 0.9)
    if high - low > WIDE * exponent:
      found.append(f'the exponent of {name} is uncertain: 90% of the resamples give {low:.3f} to {high:.3f}')
    absent = np.mean(np.isneginf(samples.log_coefficients[:, i]))
    if absent > 0.05:
      found.append(f'{absent:.0%} of the resamples have no term in {name}')
  if law.entropy < 10 * _LEAST_ENTROPY * least_loss:
    found.append('E is at its bound, 0: the losses show no curvature that would tell it from a pure power law')
  if fit.gradient_norm > MAX_GRADIENT:
    found.append(f'the fit did not converge: gradient {fit.gradient_norm:.1e}, at most {MAX_GRADIENT:.0e} expected')
  return found
