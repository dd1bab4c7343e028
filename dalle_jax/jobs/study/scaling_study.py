"""What `tools/scaling.py` prints, writes and draws of a ladder's results."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dalle_jax.evaluation import scaling_fits, scaling_laws, scaling_runs
from dalle_jax.evaluation.scaling_fits import Extrapolation, Plan, Table
from dalle_jax.evaluation.scaling_laws import Fit
from dalle_jax.files import write_json
from dalle_jax.reporting import scaling_plots as drawing
from dalle_jax.reporting.scaling_plots import Panel

FITS = 'fits.json'
LABELS = {'N': 'parameters N', 'D': 'training tokens D', 'C': 'training FLOPs C'}


def load(results: Path, count: str) -> tuple[Table, list[str]]:
  """The runs of a results file, or of the directory of a sweep; and a line for each that is left out.

  Raises:
    ValueError: there is no such file, or nothing in it that a law could be fitted to.
  """
  file = results / scaling_runs.FILE_NAME if results.is_dir() else results
  runs, complaints = scaling_runs.read(file)
  kept, left_out = scaling_runs.usable(runs)
  if not kept:
    raise ValueError('\n'.join([f'{file} holds no run with a loss.', *complaints, *left_out]))
  return scaling_fits.tabulate(kept, count), [*complaints, *left_out]


def report(
  fits: dict[str, Fit], missing: Sequence[str], test: Extrapolation | None, table: Table, coverage: float
) -> str:
  """The fits as lines: value and interval of each parameter, what speaks against each, and the test."""
  span = np.log10(table.flops.max() / table.flops.min())
  lines = [
    f'{len(table.losses)} runs over {span:.1f} decades of compute, losses in {table.unit}; '
    f'{coverage:.0%} intervals of the bootstrap in brackets'
  ]
  for name, fitted in fits.items():
    decades = ', '.join(f'{key} {span:.1f}' for key, span in zip(fitted.names, fitted.decades, strict=True))
    lines.append(f'{name}: {fitted.num_runs} runs, decades: {decades}, gradient {fitted.gradient_norm:.0e}')
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
    where = 'within' if low <= test.seen <= high else 'outside of'
    lines.append(
      f'Test: L(N, D) without the largest run, {test.name}, of {test.factor:.1f} times the compute of the next one, '
      f'predicts {test.predicted:.4f} [{low:.4f}, {high:.4f}]; seen {test.seen:.4f}, {where} the interval '
      f'({test.seen / test.predicted - 1:+.2%}).'
    )
  return '\n'.join(lines)


def fit(
  table: Table, coverage: float, num_samples: int, seed: int
) -> tuple[dict[str, Fit], list[str], Extrapolation | None]:
  """All laws, why some are missing, and the test on the largest run."""
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
  """Write fits.json whole or not at all."""
  write_json(path, scaling_fits.as_json(fits, missing, test, coverage))


def describe_plan(found: Plan, unit: str, coverage: float) -> str:
  """The answer to what to train, in lines."""

  def line(name: str, figures: tuple[float, float, float]) -> str:
    return f'{name:<16} {figures[0]:.3g}  [{figures[1]:.3g}, {figures[2]:.3g}]'

  beyond = found.decades_beyond
  where = f'{beyond:.1f} decades beyond the largest run of the ladder: an extrapolation'
  lines = [
    f'{found.compute:.3g} FLOPs, ' + (where if beyond > 0 else 'within the ladder'),
    line('parameters N', found.params),
    line('tokens D', found.tokens),
    line('loss', found.loss) + f' {unit}',
    f'({coverage:.0%} intervals of the bootstrap over runs; they know nothing of errors of the form of the law)',
  ]
  return '\n'.join([*lines, *(f'warning: {note}' for note in found.notes)])


def panels(table: Table, fits: dict[str, Fit], coverage: float) -> list[Panel]:
  """Loss against compute with the frontier, against size by budget, and against data by size."""
  everything = np.ones(len(table.losses), bool)
  compute = Panel('Loss and compute', LABELS['C'])
  for size in np.unique(table.params):
    rows = table.where(table.params == size)
    compute.series[f'N = {size:.3g}'] = (rows.flops, rows.losses)
  best = table.where(scaling_fits.on_frontier(table, everything))
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
  at = np.geomspace(x.min(), x.max(), 60)
  tail = 50 * (1 - coverage)
  low, high = np.percentile(fitted.samples(at[None]), [tail, 100 - tail], axis=0)
  panel.law = (at, fitted.law(at[None]), low, high)
  panel.label = f'E + A/{fitted.names[0]}^{fitted.law.exponents[0]:.3f}'


def plot(table: Table, fits: dict[str, Fit], coverage: float, path: Path) -> None:
  """Draws the panels.

  Raises:
    ValueError: the file's ending is none that can be drawn, or it cannot be written.
  """
  if path.suffix not in drawing.FORMATS:
    raise ValueError(f'--out={path} must end in {" or ".join(drawing.FORMATS)}.')
  try:
    drawing.draw(panels(table, fits, coverage), table.unit, path)
  except OSError as error:
    raise ValueError(f'--out={path} cannot be written: {error}') from None
