"""Fits of scaling laws to the results of a ladder: the text, files and plots of `tools/scaling.py`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dalle_jax.evaluation import scaling_fits, scaling_laws, scaling_runs
from dalle_jax.evaluation.scaling_fits import Extrapolation, Plan, Table
from dalle_jax.evaluation.scaling_laws import Fit
from dalle_jax.files import reason, write_json
from dalle_jax.reporting import scaling_plots as drawing
from dalle_jax.reporting.scaling_plots import Panel

FITS = 'fits.json'
LABELS = {'N': 'parameters N', 'D': 'training tokens D', 'C': 'training FLOPs C'}


def load(results: Path, count: str) -> tuple[Table, list[str]]:
  """Load the finished runs of a sweep.

  Args:
    results: the directory of the sweep, or its results file.
    count: the parameters that N counts, 'non_embedding' or 'total'.

  Returns:
    The runs, and one line for each run that is left out.

  Raises:
    ValueError: there is no such file, or it has no run with a loss.
  """
  file = results / scaling_runs.FILE_NAME if results.is_dir() else results
  runs, complaints = scaling_runs.read(file)
  usable_runs, left_out = scaling_runs.usable(runs)
  if not usable_runs:
    raise ValueError('\n'.join([f'{file} holds no run with a loss.', *complaints, *left_out]))
  return scaling_fits.tabulate(usable_runs, count), [*complaints, *left_out]


def report(
  fits: dict[str, Fit], missing: Sequence[str], test: Extrapolation | None, table: Table, coverage: float
) -> str:
  """The fits as text: the parameters with their intervals, the warnings, and the test on the largest run."""
  span = np.log10(table.flops.max() / table.flops.min())
  lines = [
    f'{len(table.losses)} runs over {span:.1f} decades of compute, losses in {table.unit}; '
    f'{coverage:.0%} bootstrap intervals in brackets'
  ]
  for name, fitted in fits.items():
    decades = ', '.join(f'{key} {span:.1f}' for key, span in zip(fitted.names, fitted.decades, strict=True))
    lines.append(f'{name}: {fitted.num_runs} runs, decades: {decades}, gradient norm {fitted.gradient_norm:.0e}')
    for key, (value, samples) in fitted.parameters().items():
      low, high = scaling_laws.percentiles(samples, coverage)
      lines.append(f'  {key:<8} {value:>10.4g}  [{low:.4g}, {high:.4g}]')
    if fitted.pure_exponent is not None:
      lines.append(f'  without E the exponent would be {fitted.pure_exponent:.4f}')
    lines.append(f'  correlation of E and alpha_{fitted.names[0]} over the resamples: {fitted.correlation():.2f}')
    lines += [f'  warning: {warning}' for warning in fitted.warnings]
  lines += missing
  if test:
    low, high = test.interval
    where = 'within' if low <= test.seen <= high else 'outside'
    lines.append(
      f'Test: the largest run, {test.name}, has {test.factor:.1f} times the compute of the next largest. '
      f'L(N, D), fitted without it, predicts {test.predicted:.4f} [{low:.4f}, {high:.4f}]. Its loss is {test.seen:.4f} '
      f'({test.seen / test.predicted - 1:+.2%}), {where} the interval.'
    )
  return '\n'.join(lines)


def fit(
  table: Table, coverage: float, num_samples: int, seed: int
) -> tuple[dict[str, Fit], list[str], Extrapolation | None]:
  """Fit all laws.

  Returns:
    The fits by name, a line with the reason for each missing law or test, and the test on the largest run. The test is
    None if it is missing.
  """
  fits, missing = scaling_fits.fit_laws(table, num_samples, seed)
  try:
    test = scaling_fits.extrapolate(table, coverage, num_samples, seed)
  except ValueError as error:
    test = None
    missing.append(f'No test on the largest run: {error}')
  return fits, missing, test


def write(
  path: Path, fits: dict[str, Fit], missing: Sequence[str], test: Extrapolation | None, coverage: float
) -> None:
  """Write fits.json, whole or not at all."""
  write_json(path, scaling_fits.as_json(fits, missing, test, coverage))


def describe_plan(plan: Plan, unit: str, coverage: float) -> str:
  """The model size and training tokens of a planned run, and its expected loss, as text."""

  def line(name: str, figures: tuple[float, float, float]) -> str:
    return f'{name:<16} {figures[0]:.3g}  [{figures[1]:.3g}, {figures[2]:.3g}]'

  beyond = plan.decades_beyond
  where = f'{beyond:.1f} decades beyond the largest run of the ladder: an extrapolation'
  lines = [
    f'{plan.compute:.3g} FLOPs, ' + (where if beyond > 0 else 'within the ladder'),
    line('parameters N', plan.params),
    line('tokens D', plan.tokens),
    line('loss', plan.loss) + f' {unit}',
    f'({coverage:.0%} intervals of a bootstrap over runs; they ignore that the form of the law may be wrong)',
  ]
  return '\n'.join([*lines, *(f'warning: {note}' for note in plan.notes)])


def panels(table: Table, fits: dict[str, Fit], coverage: float) -> list[Panel]:
  """The panels of the plot: loss against compute with the frontier, against size, and against data."""
  all_runs = np.ones(len(table.losses), bool)
  compute = Panel('Loss and compute', LABELS['C'])
  for size in np.unique(table.params):
    rows = table.where(table.params == size)
    compute.series[f'N = {size:.3g}'] = (rows.flops, rows.losses)
  best = table.where(scaling_fits.on_frontier(table, all_runs))
  compute.marked = (best.flops, best.losses)
  size, data = Panel('Loss and size', LABELS['N']), Panel('Loss and data', LABELS['D'])
  for tokens in np.unique(table.tokens):
    rows = table.where(table.tokens == tokens)
    order = rows.params.argsort()
    size.series[f'D = {tokens:.3g}'] = (rows.params[order], rows.losses[order])
  for params in np.unique(table.params):
    rows = table.where(table.params == params)
    data.series[f'N = {params:.3g}'] = (rows.tokens, rows.losses)
  for panel, name, x in (
    (compute, 'L(C)', table.flops), (size, 'L(N)', table.params), (data, 'L(D)', table.tokens),
  ):  # fmt: skip
    if name in fits:
      _add_law(panel, fits[name], x, coverage)
  return [compute, size, data]


def _add_law(panel: Panel, fitted: Fit, x: np.ndarray, coverage: float) -> None:
  points = np.geomspace(x.min(), x.max(), 60)
  tail = 50 * (1 - coverage)
  low, high = np.percentile(fitted.samples(points[None]), [tail, 100 - tail], axis=0)
  panel.law = (points, fitted.law(points[None]), low, high)
  panel.label = f'E + A/{fitted.names[0]}^{fitted.law.exponents[0]:.3f}'


def plot(table: Table, fits: dict[str, Fit], coverage: float, path: Path) -> None:
  """Draw the panels and write them to `path`.

  Raises:
    ValueError: the file's suffix is not a supported format, or the file cannot be written.
  """
  if path.suffix not in drawing.FORMATS:
    raise ValueError(f'--out={path} must end in {" or ".join(drawing.FORMATS)}.')
  try:
    drawing.draw(panels(table, fits, coverage), table.unit, path)
  except OSError as error:
    raise ValueError(
      f'--out={path} cannot be written: {reason(error, path)}; name a file in a writable directory.'
    ) from None
