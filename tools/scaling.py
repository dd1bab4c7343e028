"""Scaling laws: trains models of several sizes and budgets, fits laws to their losses, plots them, and plans a run.

    python tools/scaling.py sweep --config=configs/language.py:transformer --out=runs/scaling/text \\
        --axis=config.model.embed_dim=32,64,128 --axis=config.model.num_layers=2,2,4 --tokens=1e5,1e6
    python tools/scaling.py fit --results=runs/scaling/text
    python tools/scaling.py plot --results=runs/scaling/text --out=scaling.svg
    python tools/scaling.py plan --results=runs/scaling/text --compute=1e15

`sweep` trains every size on every budget, each in its own process, and resumes where it was stopped. docs/scaling.md
explains the fits and how far to trust them.
"""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from dalle_jax import flags as doors

_CONFIG = config_flags.DEFINE_config_file('config', None, 'sweep: configuration file with what all runs share.')
_AXIS = flags.DEFINE_multi_string(
  'axis', [],
  'sweep: config.GROUP.KEY=VALUE,VALUE,... with one value per size. Repeat the flag for more keys; the first values of '
  'all axes make the first size, and so on.',
)  # fmt: skip
_TOKENS = flags.DEFINE_list('tokens', [], 'sweep: comma-separated budgets of training tokens, such as 1e5,1e6.')
_STEPS = flags.DEFINE_list(
  'steps', [], 'sweep: comma-separated budgets of optimizer steps; an alternative to --tokens.'
)
_SEEDS = flags.DEFINE_list(
  'seeds', ['0'], 'sweep: comma-separated seeds; each size and budget is trained once per seed.'
)
_WARMUP = flags.DEFINE_float(
  'warmup_fraction', 0.05, 'sweep: share of the steps in which the learning rate warms up.', lower_bound=0.0,
  upper_bound=1.0,
)  # fmt: skip
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'sweep: print the planned runs without training them.')
_OUT = flags.DEFINE_string('out', None, 'sweep: directory for runs and results. plot: file to write, .svg or .png.')
_OVERWRITE = doors.define_overwrite('the file of --out (plot)')
_RESULTS = flags.DEFINE_string('results', None, 'fit, plot, plan: directory of a sweep, or its results.jsonl.')
_PARAMS = flags.DEFINE_enum(
  'params', 'non_embedding', ['non_embedding', 'total'], 'fit, plot, plan: the parameters that N counts.'
)
_COMPUTE = flags.DEFINE_float('compute', None, 'plan: training budget of the run to plan, in FLOPs.', lower_bound=1.0)
_COVERAGE = flags.DEFINE_float(
  'coverage', 0.9, 'fit, plot, plan: share of the bootstrap samples that an interval covers.', lower_bound=0.01,
  upper_bound=0.999,
)  # fmt: skip
_RESAMPLES = flags.DEFINE_integer(
  'resamples', 1000, 'fit, plot, plan: number of bootstrap samples.', lower_bound=100, upper_bound=100_000
)
_BOOTSTRAP_SEED = flags.DEFINE_integer('bootstrap_seed', 0, 'fit, plot, plan: seed of the bootstrap.', lower_bound=0)
SUBJECTS = ('sweep', 'fit', 'plot', 'plan')


def numbers(words: list[str], flag: str, kind: type) -> list[Any]:
  """Parses a flag that lists numbers above 0; seeds may be 0.

  Raises:
    ValueError: a value is not a number, or is out of range.
  """
  try:
    values = [kind(word) for word in words]
  except ValueError:
    raise ValueError(f'--{flag} is {",".join(words)}; it must list numbers, such as 1e5,1e6.') from None
  if any(not 0 <= value < float('inf') or (value == 0 and flag != 'seeds') for value in values):
    raise ValueError(f'--{flag} is {",".join(words)}; its numbers must be above 0.')
  return values


def fixed_arguments() -> tuple[str, list[str]]:
  """The configuration file, and the arguments that override its keys in all runs."""
  flag = flags.FLAGS['config']
  arguments = []
  for key, value in config_flags.get_override_values(flag).items():
    arguments += [f'--config.{key}={item}' for item in (value if isinstance(value, tuple) else (value,))]
  return config_flags.get_config_filename(flag), arguments


def parse(config: str, fixed: list[str], overrides: Mapping[str, str]) -> Any:
  """Reads the configuration as the training command will read it."""
  argv = ['sweep', f'--config={config}', *fixed, *(f'--{key}={value}' for key, value in overrides.items())]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    settings = ', '.join(f'{key}={value}' for key, value in overrides.items())
    raise ValueError(f'Training does not accept {settings}: {doors.essence(error)}') from None
  doors.refuse_choice(doors.check_overrides(values['config']))
  return holder.value


def sweep() -> int:
  """Trains all runs, or prints them with --dry_run; returns the exit status."""
  if _CONFIG.value is None or not _OUT.value:
    raise ValueError('sweep needs --config=FILE and --out=DIRECTORY.')
  from dalle_jax.jobs.study import ladder
  from dalle_jax.jobs.study import sweep as sweeping
  from dalle_jax.training.signals import EXIT_INTERRUPTED, Interrupted

  config, fixed = fixed_arguments()
  rungs = ladder.build(
    functools.partial(parse, config, fixed),
    ladder.parse_axes(_AXIS.value),
    tokens=numbers(_TOKENS.value, 'tokens', float),
    steps=numbers(_STEPS.value, 'steps', int),
    seeds=numbers(_SEEDS.value, 'seeds', int),
    warmup_fraction=_WARMUP.value,
  )
  print(sweeping.table(rungs), flush=True)
  if _DRY_RUN.value:
    return 0
  try:
    runs = sweeping.sweep(rungs, Path(_OUT.value), sweeping.train_by_command(config, fixed))
  except Interrupted as stop:
    print(stop)
    return EXIT_INTERRUPTED
  unfinished = [f'{run.name} ({run.status})' for run in runs if run.status != 'finished']
  print(
    f'{len(runs) - len(unfinished)} of {len(runs)} runs have a loss in {Path(_OUT.value) / "results.jsonl"}'
    + (f'; missing: {", ".join(unfinished)}' if unfinished else '')
  )
  return 1 if unfinished else 0


def after_sweep(subject: str) -> int:
  """Runs fit, plot or plan on the results of a sweep; returns the exit status."""
  if not _RESULTS.value:
    raise ValueError(f'{subject} needs --results=DIRECTORY, the --out of a sweep.')
  if subject == 'plot' and not _OUT.value:
    raise ValueError('plot needs --out=FILE.svg or FILE.png.')
  if subject == 'plan' and _COMPUTE.value is None:
    raise ValueError('plan needs --compute=FLOPS, such as 1e15.')
  from dalle_jax import files
  from dalle_jax.evaluation import scaling_fits
  from dalle_jax.jobs.study import scaling_study

  if subject == 'plot':
    files.check_out(Path(_OUT.value), _OVERWRITE.value)
  path, coverage = Path(_RESULTS.value), _COVERAGE.value
  table, left_out = scaling_study.load(path, _PARAMS.value)
  for line in left_out:
    print(line)
  if subject == 'fit':
    fitted = scaling_study.fit(table, coverage, _RESAMPLES.value, _BOOTSTRAP_SEED.value)
    print(scaling_study.report(*fitted, table, coverage))
    out = (path if path.is_dir() else path.parent) / scaling_study.FITS
    scaling_study.write(out, *fitted, coverage)
    print(out)
    return 0
  fits, missing = scaling_fits.fit_laws(table, _RESAMPLES.value, _BOOTSTRAP_SEED.value)
  if subject == 'plot':
    scaling_study.plot(table, fits, coverage, Path(_OUT.value))
    print(_OUT.value)
    return 0
  if 'L(N, D)' not in fits:
    raise ValueError(
      '\n'.join(['A plan needs the law of size and data, L(N, D), which could not be fitted.', *missing])
    )
  plan = scaling_fits.plan(table, fits['L(N, D)'], _COMPUTE.value, coverage)
  print(scaling_study.describe_plan(plan, table.unit, coverage))
  for warning in fits['L(N, D)'].warnings:
    print(f'warning: L(N, D): {warning}')
  return 0


def main(subject: str, argv: list[str]) -> int:
  del argv
  return sweep() if subject == 'sweep' else after_sweep(subject)


if __name__ == '__main__':
  doors.run(functools.partial(main, doors.take_subject(sys.argv, SUBJECTS)))
