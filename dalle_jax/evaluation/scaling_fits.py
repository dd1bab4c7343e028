"""From a ladder's runs to its scaling laws, a test of them, and the answer to what to train with given compute."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dalle_jax.evaluation import scaling_laws
from dalle_jax.evaluation.scaling_laws import Fit, Law
from dalle_jax.evaluation.scaling_runs import Run, frontier

COUNTS = {'non_embedding': 'num_non_embedding', 'total': 'num_params'}  # what N counts
_SIZES = np.geomspace(1, 1e15, 8_000)  # among which the best size is looked for; neighbours differ by 0.4%


@dataclasses.dataclass(frozen=True)
class Table:
  """The runs as arrays [R], by rising compute."""

  names: tuple[str, ...]
  params: np.ndarray  # N
  tokens: np.ndarray  # D
  flops: np.ndarray  # C
  losses: np.ndarray
  unit: str

  def where(self, mask: np.ndarray) -> 'Table':
    names = tuple(name for name, kept in zip(self.names, mask, strict=True) if kept)
    arrays = (self.params, self.tokens, self.flops, self.losses)
    return Table(names, *(array[mask] for array in arrays), self.unit)

  @property
  def sizes_and_tokens(self) -> np.ndarray:
    return np.stack([self.params, self.tokens])


@dataclasses.dataclass(frozen=True)
class Extrapolation:
  """A law fitted without the run of the most compute, asked for that run's loss."""

  name: str
  seen: float
  predicted: float
  interval: tuple[float, float]  # of the law; a single run scatters besides
  factor: float  # compute of the run over that of the largest one fitted


@dataclasses.dataclass(frozen=True)
class Plan:
  """What to train with given compute: value and interval of each figure."""

  compute: float
  params: tuple[float, float, float]  # value, low, high
  tokens: tuple[float, float, float]
  loss: tuple[float, float, float]
  decades_beyond: float  # of compute, from the largest run of the ladder; below 0 inside of it
  notes: tuple[str, ...]


def tabulate(runs: Sequence[Run], count: str = 'non_embedding') -> Table:
  """The runs as arrays.

  Args:
    runs: usable ones, by rising compute.
    count: what N counts, a key of COUNTS.
  """
  values = [(getattr(run, COUNTS[count]), run.tokens, run.flops, run.loss) for run in runs]
  arrays = np.array(values, np.float64).reshape(-1, 4).T
  return Table(tuple(run.name for run in runs), *arrays, runs[0].unit if runs else '')


def fit_laws(table: Table, num_samples: int = 1_000, seed: int = 0) -> tuple[dict[str, Fit], list[str]]:
  """L(N) at the largest budget, L(D) of the largest size, L(C) on the frontier and L(N, D); and why one is missing.

  The frontier's intervals count its choice in: each resample of all the runs has its own frontier.
  """
  at_largest_budget = table.where(table.tokens == table.tokens.max())
  of_largest_size = table.where(table.params == table.params.max())
  recipes: dict[str, tuple[tuple[str, ...], np.ndarray, Table, Callable | None]] = {
    'L(N)': (('N',), at_largest_budget.params[None], at_largest_budget, None),
    'L(D)': (('D',), of_largest_size.tokens[None], of_largest_size, None),
    'L(C)': (('C',), table.flops[None], table, lambda held: on_frontier(table, held)),
    'L(N, D)': (('N', 'D'), table.sizes_and_tokens, table, None),
  }
  fits, missing = {}, []
  for name, (inputs, values, rows, chosen) in recipes.items():
    try:
      fits[name] = scaling_laws.fit(inputs, values, rows.losses, num_samples=num_samples, seed=seed, chosen=chosen)
    except ValueError as error:
      missing.append(f'{name} is not fitted: {error}')
  return fits, missing


def on_frontier(table: Table, held: np.ndarray) -> np.ndarray:
  """Those of the runs `held`, bool [R], that are compute-efficient among them, bool [R]."""
  mask = np.zeros(len(held), bool)
  mask[held] = frontier(table.flops[held], table.losses[held])
  return mask


def extrapolate(table: Table, coverage: float, num_samples: int = 1_000, seed: int = 0) -> Extrapolation:
  """Fits L(N, D) to all runs but the one of the most compute, and predicts that one.

  Raises:
    ValueError: the rest is too little for a fit.
  """
  last = int(np.argmax(table.flops))
  rest = table.where(np.arange(len(table.losses)) != last)
  fitted = scaling_laws.fit(('N', 'D'), rest.sizes_and_tokens, rest.losses, num_samples=num_samples, seed=seed)
  point = table.sizes_and_tokens[:, last, None]
  return Extrapolation(
    name=table.names[last],
    seen=float(table.losses[last]),
    predicted=float(fitted.law(point)[0]),
    interval=scaling_laws.percentiles(fitted.samples(point)[:, 0], coverage),
    factor=float(table.flops[last] / rest.flops.max()),
  )


def flops_per_token(table: Table) -> Callable[[np.ndarray], np.ndarray]:
  """Training FLOPs per token of a size N, [...] to [...]: the ladder's, and beyond it in proportion to N.

  Between sizes the logarithm is interpolated. With a large N it is about 6 N; of small models attention and the output
  matrix, which N leaves out, take more than that.
  """
  sizes = np.unique(table.params)
  cost = np.array([np.mean((table.flops / table.tokens)[table.params == size]) for size in sizes])

  def per_token(params: np.ndarray) -> np.ndarray:
    inside = np.clip(params, sizes[0], sizes[-1])
    return np.exp(np.interp(np.log(inside), np.log(sizes), np.log(cost))) * params / inside

  return per_token


def allocate(law: Law, compute: float, per_token: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
  """The size N, the tokens D and the loss of the least L(N, D) with per_token(N) D = compute.

  With L = E + A/N^a + B/D^b and C = 6 N D there is a closed form (Hoffmann et al. 2022, equation 4): putting
  D = C / (6 N) and setting the derivative by ln N to 0 gives a A / N^a = b B / D^b, and so

      N = G (C/6)^(b/(a+b)),   D = (C/6)^(a/(a+b)) / G,   G = (a A / (b B))^(1/(a+b)).

  As FLOPs per token are not 6 N for small models, the least loss is looked for among many sizes instead.
  """
  inputs = np.stack([_SIZES, compute / per_token(_SIZES)])
  losses = law(inputs)
  best = int(losses.argmin())
  return float(inputs[0, best]), float(inputs[1, best]), float(losses[best])


def plan(table: Table, fitted: Fit, compute: float, coverage: float) -> Plan:
  """The size and the tokens for given compute, with percentile intervals from the bootstrap of L(N, D).

  Raises:
    ValueError: the compute is not above 0.
  """
  if not 0 < compute < np.inf:
    raise ValueError(f'--compute is {compute:g}; it must be a number of FLOPs above 0.')
  per_token = flops_per_token(table)
  best = allocate(fitted.law, compute, per_token)
  samples = fitted.samples
  laws = (Law(*parts) for parts in zip(samples.entropy, samples.log_coefficients, samples.exponents, strict=True))
  found = np.array([allocate(law, compute, per_token) for law in laws])
  params, tokens, loss = (
    (value, *scaling_laws.percentiles(column, coverage)) for value, column in zip(best, found.T, strict=True)
  )
  edge = np.mean((found[:, 0] <= _SIZES[1]) | (found[:, 0] >= _SIZES[-2]))
  return Plan(compute, params, tokens, loss, float(np.log10(compute / table.flops.max())), _notes(table, best, edge))


def _notes(table: Table, best: tuple[float, float, float], edge: float) -> tuple[str, ...]:
  found = []
  for name, value, seen in (('N', best[0], table.params), ('D', best[1], table.tokens)):
    decades = np.log10([value / seen.max(), seen.min() / value]).max()
    if decades > 0:
      found.append(f'{name} lies {decades:.1f} decades outside of the ladder, {seen.min():.3g} to {seen.max():.3g}')
  if edge:
    found.append(f'{edge:.0%} of the resamples give no best size at all, as their law lacks N or D')
  return tuple(found)


def as_json(
  fits: dict[str, Fit], missing: Sequence[str], test: Extrapolation | None, coverage: float
) -> dict[str, Any]:
  """All figures in full precision, for fits.json."""

  def one(fitted: Fit) -> dict[str, Any]:
    values = {
      name: {'value': value, 'interval': scaling_laws.percentiles(samples, coverage)}
      for name, (value, samples) in fitted.parameters().items()
    }
    names = ('num_runs', 'decades', 'pure_exponent', 'threshold', 'gradient_norm', 'warnings')
    return {'parameters': values, 'correlation_E_alpha': fitted.correlation()} | {
      name: getattr(fitted, name) for name in names
    }

  return {
    'coverage': coverage,
    'fits': {name: one(fitted) for name, fitted in fits.items()},
    'missing': list(missing),
    'extrapolation': None if test is None else dataclasses.asdict(test),
  }
