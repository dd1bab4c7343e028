"""Fit scaling laws to a ladder of runs, test them by extrapolation, and plan the model size for a compute budget.

A ladder is a set of training runs with several model sizes and several numbers of training tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dalle_jax.evaluation import scaling_laws
from dalle_jax.evaluation.scaling_laws import Fit, Law
from dalle_jax.evaluation.scaling_runs import Run, frontier

COUNTS = {'non_embedding': 'num_non_embedding', 'total': 'num_params'}  # which parameters N counts
_SIZES = np.geomspace(1, 1e15, 8_000)  # candidates for the best size; neighbours differ by 0.4%


@dataclasses.dataclass(frozen=True)
class Table:
  """R runs as arrays [R], sorted by compute."""

  names: tuple[str, ...]
  params: np.ndarray  # N, parameters
  tokens: np.ndarray  # D, training tokens
  flops: np.ndarray  # C, compute
  losses: np.ndarray  # L, held-out losses
  unit: str  # unit of the losses

  def where(self, mask: np.ndarray) -> 'Table':
    """The rows where `mask`, bool [R], is True."""
    names = tuple(name for name, is_selected in zip(self.names, mask, strict=True) if is_selected)
    return Table(names, self.params[mask], self.tokens[mask], self.flops[mask], self.losses[mask], self.unit)

  @property
  def sizes_and_tokens(self) -> np.ndarray:
    """N and D, [2, R]: the inputs of L(N, D)."""
    return np.stack([self.params, self.tokens])


@dataclasses.dataclass(frozen=True)
class Extrapolation:
  """A prediction of the largest run's loss by a law that is fitted to all other runs."""

  name: str  # name of the largest run
  seen: float  # its measured loss
  predicted: float  # its predicted loss
  interval: tuple[float, float]  # interval of the law's value; it does not include the scatter of a single run
  factor: float  # the run's compute divided by the compute of the largest fitted run


@dataclasses.dataclass(frozen=True)
class Plan:
  """The best model size, token count and loss for a compute budget, each as (value, low, high)."""

  compute: float  # FLOPs
  params: tuple[float, float, float]
  tokens: tuple[float, float, float]
  loss: tuple[float, float, float]
  decades_beyond: float  # log10 of the budget over the largest run's compute; negative inside the ladder
  notes: tuple[str, ...]  # warnings for the user


def tabulate(runs: Sequence[Run], count: str = 'non_embedding') -> Table:
  """Arrange runs as arrays.

  Args:
    runs: usable runs, sorted by compute.
    count: which parameters N counts, a key of COUNTS.
  """
  values = [(getattr(run, COUNTS[count]), run.tokens, run.flops, run.loss) for run in runs]
  params, tokens, flops, losses = np.array(values, np.float64).reshape(-1, 4).T
  return Table(tuple(run.name for run in runs), params, tokens, flops, losses, runs[0].unit if runs else '')


def fit_laws(table: Table, num_samples: int = 1_000, seed: int = 0) -> tuple[dict[str, Fit], list[str]]:
  """Fit four laws to a ladder.

  - L(N): the runs with the most tokens.
  - L(D): the runs of the largest size.
  - L(C): the runs on the compute-efficient frontier. The bootstrap resamples all runs and finds the frontier of each
    resample, so that the intervals include the choice of the frontier.
  - L(N, D): all runs.

  Returns:
    The fits by name, and a message for each law that cannot be fitted.
  """
  most_tokens = table.where(table.tokens == table.tokens.max())
  largest_size = table.where(table.params == table.params.max())
  recipes: dict[str, tuple[tuple[str, ...], np.ndarray, Table, Callable | None]] = {
    'L(N)': (('N',), most_tokens.params[None], most_tokens, None),
    'L(D)': (('D',), largest_size.tokens[None], largest_size, None),
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
  """Mark the compute-efficient runs, bool [R], considering only the runs marked in `held`, bool [R]."""
  mask = np.zeros(len(held), bool)
  mask[held] = frontier(table.flops[held], table.losses[held])
  return mask


def extrapolate(table: Table, coverage: float, num_samples: int = 1_000, seed: int = 0) -> Extrapolation:
  """Fit L(N, D) to all runs except the one with the most compute, and predict the loss of that run.

  Args:
    table: the runs.
    coverage: the share of the bootstrap samples in the prediction's interval.
    num_samples: resamples of the bootstrap.
    seed: the seed of the bootstrap.

  Raises:
    ValueError: the other runs are too few for a fit.
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
  """Make the function from model sizes N [...] to training FLOPs per token [...].

  At the sizes of the ladder the function gives the measured FLOPs. Between sizes it interpolates in the logarithms.
  Outside the ladder it extrapolates in proportion to N.

  FLOPs per token are about 6 N for a large N. For small models they are more, because N leaves out attention and the
  output matrix.
  """
  sizes = np.unique(table.params)
  cost = np.array([np.mean((table.flops / table.tokens)[table.params == size]) for size in sizes])

  def per_token(params: np.ndarray) -> np.ndarray:
    inside = np.clip(params, sizes[0], sizes[-1])
    return np.exp(np.interp(np.log(inside), np.log(sizes), np.log(cost))) * params / inside

  return per_token


def allocate(law: Law, compute: float, per_token: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
  """Find the size N and the tokens D that minimise L(N, D) subject to per_token(N) D = compute.

  For L = E + A/N^a + B/D^b and C = 6 N D there is a closed form (Hoffmann et al. 2022, equation 4). Substituting
  D = C / (6 N) and setting the derivative with respect to ln N to 0 gives a A / N^a = b B / D^b, and so

      N = G (C/6)^(b/(a+b)),   D = (C/6)^(a/(a+b)) / G,   G = (a A / (b B))^(1/(a+b)).

  For small models FLOPs per token are not 6 N. We therefore take the best of many candidate sizes.

  Args:
    law: L(N, D).
    compute: the budget in FLOPs.
    per_token: from sizes N to training FLOPs per token.

  Returns:
    N, D and the loss.
  """
  inputs = np.stack([_SIZES, compute / per_token(_SIZES)])
  losses = law(inputs)
  best = int(losses.argmin())
  return float(inputs[0, best]), float(inputs[1, best]), float(losses[best])


def plan(table: Table, fitted: Fit, compute: float, coverage: float) -> Plan:
  """Plan the model size and the training tokens for a compute budget.

  Args:
    table: the runs of the ladder.
    fitted: the fit of L(N, D), whose bootstrap gives the intervals.
    compute: the budget in FLOPs.
    coverage: the share of the bootstrap samples in an interval.

  Raises:
    ValueError: the budget is not positive and finite.
  """
  if not 0 < compute < np.inf:
    raise ValueError(f'--compute is {compute:g}; it must be a finite number of FLOPs above 0.')
  per_token = flops_per_token(table)
  best = allocate(fitted.law, compute, per_token)
  samples = fitted.samples
  laws = (Law(*values) for values in zip(samples.entropy, samples.log_coefficients, samples.exponents, strict=True))
  resampled = np.array([allocate(law, compute, per_token) for law in laws])
  params, tokens, loss = (
    (value, *scaling_laws.percentiles(column, coverage)) for value, column in zip(best, resampled.T, strict=True)
  )
  edge_share = np.mean((resampled[:, 0] <= _SIZES[1]) | (resampled[:, 0] >= _SIZES[-2]))
  decades_beyond = float(np.log10(compute / table.flops.max()))
  return Plan(compute, params, tokens, loss, decades_beyond, _notes(table, best, edge_share))


def _notes(table: Table, best: tuple[float, float, float], edge_share: float) -> tuple[str, ...]:
  """Warnings about a plan; `edge_share` is the share of resamples whose best size is at an end of _SIZES."""
  notes = []
  for name, value, ladder in (('N', best[0], table.params), ('D', best[1], table.tokens)):
    decades = np.log10([value / ladder.max(), ladder.min() / value]).max()
    if decades > 0:
      notes.append(f'{name} lies {decades:.1f} decades outside the ladder, {ladder.min():.3g} to {ladder.max():.3g}')
  if edge_share:
    notes.append(f'{edge_share:.0%} of the resamples have no best size, because their law has no term in N or in D')
  return tuple(notes)


def as_json(
  fits: dict[str, Fit], missing: Sequence[str], test: Extrapolation | None, coverage: float
) -> dict[str, Any]:
  """Convert the fits to the contents of fits.json, in full precision."""

  def as_dict(fitted: Fit) -> dict[str, Any]:
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
    'fits': {name: as_dict(fitted) for name, fitted in fits.items()},
    'missing': list(missing),
    'extrapolation': None if test is None else dataclasses.asdict(test),
  }
