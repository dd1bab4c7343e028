"""Trains the rungs of a ladder, each in its own process. An interrupted sweep resumes where it stopped."""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from dalle_jax.evaluation import scaling_runs
from dalle_jax.evaluation.scaling_runs import Run
from dalle_jax.files import check_array_path, check_path, read_json_object, reason
from dalle_jax.hosts import say
from dalle_jax.jobs import run_lock
from dalle_jax.jobs.study.ladder import MEASURES, Rung
from dalle_jax.training import metrics_log
from dalle_jax.training.progress import format_duration
from dalle_jax.training.signals import EXIT_INTERRUPTED, Interrupted, terminations_as_interrupts

EXIT_DIVERGED = 1
Train = Callable[[Rung, Path, Path], int]  # (rung, work directory, log file) -> exit status of the training process


def table(rungs: Sequence[Rung]) -> str:
  """The cost of a ladder as text: one line for each rung, cheapest first, and the total."""
  costs = sorted(((rung, *rung.cost()) for rung in rungs), key=lambda row: row[-1])
  total = sum(row[-1] for row in costs)
  lines = [
    f'{"parameters":>12} {"outside emb.":>12} {"tokens":>12} {"steps":>8} {"FLOPs":>10} {"/6ND":>6} {"share":>6}  run'
  ]
  for rung, params, outside, flops in costs:
    ratio = flops / (6 * outside * rung.tokens)
    lines.append(
      f'{params:>12,} {outside:>12,} {rung.tokens:>12,} {rung.training.num_steps:>8,} {flops:>10.2e} {ratio:>6.2f} '
      f'{flops / total:>6.1%}  {rung.name}'
    )
  decades = math.log10(costs[-1][-1] / costs[0][-1])
  return '\n'.join([*lines, f'{len(rungs)} runs, {total:.2e} FLOPs, over {decades:.1f} decades of compute.'])


def sweep(rungs: Sequence[Rung], out: Path, train: Train) -> list[Run]:
  """Train the rungs that have no result yet, cheapest first, and return the results of all rungs.

  Each result is written to OUT/results.jsonl as soon as its run ends. The result of a run that diverged or failed has
  no loss. The next sweep repeats failed runs, but not diverged ones.

  Args:
    rungs: the ladder.
    out: the directory for results.jsonl, runs/NAME (work directories) and logs/NAME.log.
    train: trains one rung.

  Returns:
    One result for each rung, in the order of `rungs`.

  Raises:
    ValueError: the directory cannot be used, or another sweep runs in it.
    Interrupted: on Ctrl-C or SIGTERM, after the current run has saved a checkpoint.
  """
  check_path(out, '--out')
  check_array_path(out, '--out')
  with run_lock.hold(out, '--out') as lock:
    return _sweep(rungs, out, train, lock.confirm if lock else lambda: None)


def _sweep(rungs: Sequence[Rung], out: Path, train: Train, confirm: Callable[[], None]) -> list[Run]:
  """Train the rungs in a locked directory; see `sweep`. Calls `confirm` before it writes."""
  file = out / scaling_runs.FILE_NAME
  try:
    (out / 'logs').mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(
      f'--out={out} cannot be made: {reason(error, out)}; name a directory in a writable place.'
    ) from None
  earlier_runs, complaints = scaling_runs.read(file) if file.exists() else ([], [])
  for complaint in complaints:
    say(f'{complaint} (its run will be measured again)')
  results = {run.name: run for run in earlier_runs}
  costs = {rung.name: rung.cost()[-1] for rung in rungs}
  todo = sorted((rung for rung in rungs if not _is_done(results.get(rung.name), rung)), key=lambda r: costs[r.name])
  say(f'{len(rungs) - len(todo)} of {len(rungs)} runs are done.')
  seconds: dict[str, float] = {}
  for i, rung in enumerate(todo):
    start = time.monotonic()
    run = _run(rung, out, train)
    results[rung.name] = run
    confirm()
    scaling_runs.write(file, results.values())
    seconds[rung.name] = time.monotonic() - start
    remaining = _seconds_left(
      [costs[name] for name in seconds], list(seconds.values()), [costs[r.name] for r in todo[i + 1 :]]
    )
    outcome = f'{run.loss:.4f} {run.unit}' if run.loss is not None else run.status
    say(
      f'[{i + 1}/{len(todo)}] {rung.name}: {outcome}, {format_duration(seconds[rung.name])}; '
      f'{format_duration(remaining)} left'
    )
  return [results[rung.name] for rung in rungs]


def _is_done(run: Run | None, rung: Rung) -> bool:
  return run is not None and run.config_hash == rung.config_hash and run.status != 'failed'


def _seconds_left(costs: list[float], seconds: list[float], ahead: list[float]) -> float:
  """Estimate the seconds that the remaining runs will take.

  The model is a fixed time for each run plus a time proportional to its FLOPs, fitted to the finished runs.

  Args:
    costs: FLOPs of the finished runs.
    seconds: seconds that the finished runs took.
    ahead: FLOPs of the remaining runs.
  """
  scale = max(costs)
  design = np.stack([np.ones(len(costs)), np.asarray(costs) / scale], axis=1)
  fixed, rate = optimize.nnls(design, np.asarray(seconds))[0]
  return sum(fixed + rate * cost / scale for cost in ahead)


def _run(rung: Rung, out: Path, train: Train) -> Run:
  """Train one rung and read its result from the work directory."""
  workdir, log = out / 'runs' / rung.name, out / 'logs' / f'{rung.name}.log'
  status = train(rung, workdir, log)
  if status == EXIT_INTERRUPTED:
    raise Interrupted(f'{rung.name} was stopped and saved; the same command continues it.')
  loss = _held_out_loss(rung, workdir) if status == 0 else None
  outcome = 'diverged' if status == EXIT_DIVERGED or (loss is not None and not math.isfinite(loss)) else 'finished'
  if status not in (0, EXIT_DIVERGED) or (status == 0 and loss is None):
    outcome = 'failed'
    say(f'{rung.name} failed with status {status}: {_last_line(log)}')
  total, outside, flops = rung.cost(_vocab_size(workdir))
  return Run(
    name=rung.name, status=outcome, seed=rung.config.seed, config_hash=rung.config_hash, overrides=rung.overrides,
    num_params=total, num_non_embedding=outside, tokens=rung.tokens, flops=flops,
    loss=loss if outcome == 'finished' else None, unit=MEASURES[rung.stage][2], seconds=_stage_seconds(rung, workdir),
  )  # fmt: skip


def _held_out_loss(rung: Rung, workdir: Path) -> float | None:
  """The held-out loss at the last step, in nats. NaN if it was not finite; None if it was not measured."""
  metric, factor, _ = MEASURES[rung.stage]
  file = workdir / rung.stage / metrics_log.FILE_NAME
  for line in reversed(metrics_log.read_metrics(file) if file.exists() else []):
    if line['step'] == rung.training.num_steps and f'eval/{metric}' in line:
      value = line[f'eval/{metric}']
      return math.nan if value is None else factor * value
  return None


def _vocab_size(workdir: Path) -> int | None:
  """The size of the run's vocabulary, from its model directory; None if there is none."""
  value = _read(workdir / 'model' / 'bundle.json', int, 'text_vocab_size')
  return None if value is None else int(value)


def _stage_seconds(rung: Rung, workdir: Path) -> float:
  return float(_read(workdir / 'seconds.json', (int, float), rung.stage) or 0.0)


def _read(file: Path, kind: Any, name: str) -> Any:
  """A number from a JSON file; None if there is no file, or if the file does not have it.

  Raises:
    ValueError: The file is damaged.
  """
  if not file.exists():
    return None
  advice = f'Run the training command of {file.parent} again, or remove the run to train it again.'
  value = read_json_object(file, advice).get(name)
  if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
    raise ValueError(f'{file} is damaged: {name} is not a number. {advice}')
  return value


def _last_line(log: Path) -> str:
  lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()] if log.exists() else []
  return lines[-1] if lines else 'it printed nothing'


def train_by_command(config: str, fixed: Sequence[str]) -> Train:
  """Make a function that trains a rung with `python -m dalle_jax.train`.

  Ctrl-C or SIGTERM stops the training process too.

  Args:
    config: the value of the flag --config.
    fixed: the arguments that all rungs share, such as '--config.GROUP.KEY=VALUE'.
  """

  def train(rung: Rung, workdir: Path, log: Path) -> int:
    overrides = [f'--{key}={value}' for key, value in rung.overrides.items()]
    command = [sys.executable, '-m', 'dalle_jax.train', f'--config={config}', *fixed, *overrides]
    command += [f'--workdir={workdir}', f'--stop_after={rung.stage}']
    with log.open('a', encoding='utf-8') as file, terminations_as_interrupts():
      process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
      try:
        return process.wait()
      except KeyboardInterrupt:
        process.terminate()  # harmless if Ctrl-C has already reached the training process
        process.wait()
        return EXIT_INTERRUPTED

  return train
