"""The training loop: steps, log lines, evaluation, hooks, checkpoints and stop requests, for any task."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from dalle_jax.config import LoggingConfig, TrainingConfig
from dalle_jax.sharding import check_batch, to_global, use_mesh
from dalle_jax.training.checkpoint import Checkpoints, Restored
from dalle_jax.training.metrics import make_writer
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.progress import Progress
from dalle_jax.training.signals import Interrupted, StopSignals
from dalle_jax.training.state import TrainState, abstract_state, all_params, create_state
from dalle_jax.training.step import IntervalTotals, evaluate_batches, make_eval_step, make_train_step

CHECKPOINTS = 'checkpoints'  # the directory under the run's own


class Batches(Protocol):
  """An endless stream of numpy batches (this process's rows) whose position can be saved."""

  def __next__(self) -> Any: ...

  def state(self) -> dict[str, Any]: ...

  def restore(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Hook:
  """Something to do on the way, such as a sheet of samples; `fn(state, step)` must not keep the state's arrays."""

  every: int  # in steps; 0: never on the way
  fn: Callable[[TrainState, int], None]
  last: bool = False  # also after the last step

  def is_due(self, step: int, num_steps: int) -> bool:
    return _is_due(self.every, step) or (self.last and step == num_steps)


class NonFiniteError(RuntimeError):
  """The loss, the gradient or the parameters became infinite or NaN; nothing of it was saved."""


def train(
  task: Any,
  config: TrainingConfig,
  *,
  mesh: jax.sharding.Mesh,
  seed: int,
  workdir: Path,
  batches: Batches,
  eval_batches: Callable[[], Iterable[Any]] | None = None,
  hooks: Sequence[Hook] = (),
  logging: LoggingConfig | None = None,
  initial: Mapping[str, Any] | None = None,
  meta: Mapping[str, Any] | None = None,
) -> TrainState:
  """Trains to config.num_steps, continuing from workdir/checkpoints where there are any.

  A resumed run gives, bit for bit, what an uninterrupted one does. A finished one returns at once. A checkpoint is
  written at the end and on a stop request whatever config.checkpoint_every is.

  Args:
    workdir: gets checkpoints/, metrics.jsonl and tensorboard/.
    batches: numpy batches of config.batch_size examples over all processes.
    eval_batches: makes the held-out batches anew for each evaluation, with the same number in every process; it is
      judged with the averaged parameters if config.ema_decay is above 0.
    initial: whole collections to start from, such as {'dvae': a trained dVAE}.
    meta: JSON-able facts stored with every checkpoint.

  Raises:
    ValueError: the batch does not split over the mesh; initial parameters or checkpoints do not fit the task.
    NonFiniteError: training diverged.
    Interrupted: Ctrl-C or SIGTERM arrived; the state was saved first.
  """
  check_batch(config, mesh, f'{task.name}_training')
  workdir = Path(workdir)
  with contextlib.ExitStack() as stack:
    stack.enter_context(use_mesh(mesh))
    checkpoints = stack.enter_context(Checkpoints(workdir / CHECKPOINTS, config.keep_checkpoints))
    tx = make_optimizer(config)
    restored = checkpoints.restore_latest(abstract_state(task, tx, mesh, config.ema_decay > 0))
    if restored is not None and restored.step >= config.num_steps:
      return restored.state
    if restored is None:
      state = create_state(task, tx, mesh, seed, config.ema_decay > 0, initial)
    else:
      state = restored.state
      batches.restore(restored.data)
    is_main = jax.process_index() == 0
    writer = make_writer(workdir, logging or LoggingConfig(), is_main, restored.step if restored else 0)
    stack.callback(writer.close)
    run = _Run(
      task=task,
      config=config,
      mesh=mesh,
      seed=seed,
      batches=batches,
      eval_batches=eval_batches,
      hooks=hooks,
      meta=dict(meta or {}),
      checkpoints=checkpoints,
      writer=writer,
      progress=stack.enter_context(Progress(task.name, config.num_steps, enabled=is_main)),
      stop=stack.enter_context(StopSignals()),
      train_step=make_train_step(task, tx, config, mesh, seed),
      eval_step=make_eval_step(task, mesh),
      state=state,
    )
    run.continue_from(restored)
    return run.run()


@dataclasses.dataclass(kw_only=True)
class _Run:
  """One call of `train`: its parts and what changes from step to step."""

  task: Any
  config: TrainingConfig
  mesh: jax.sharding.Mesh
  seed: int
  batches: Batches
  eval_batches: Callable[[], Iterable[Any]] | None
  hooks: Sequence[Hook]
  meta: dict[str, Any]
  checkpoints: Checkpoints
  writer: Any
  progress: Progress
  stop: StopSignals
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]
  state: TrainState

  step: int = 0
  history: dict[str, Any] = dataclasses.field(default_factory=dict)  # the best held-out loss and its step
  totals: IntervalTotals = dataclasses.field(default_factory=IntervalTotals)
  pending: tuple[int, Any, Any] | None = None  # a log line not fetched from the device yet: step, totals, last metrics
  eval_loss: float | None = None  # of the state at the current step, where it was measured
  logged_step: int = 0
  timed_from: tuple[int, float] | None = None  # step and clock from which the rate is measured
  aside_s: float = 0.0  # seconds since then spent on other things than steps

  def continue_from(self, restored: Restored | None) -> None:
    if restored is not None:
      self.step = self.logged_step = restored.step
      self.history = restored.meta['history']
      self.progress.message(f'continuing from step {restored.step}')

  def run(self) -> TrainState:
    self._first_step()
    while True:
      if self._after_step():
        return self.state
      pending, self.pending = self.pending, None
      self._one_step()
      # Fetched with the next step already queued, so that the device does not wait for the host.
      self._write(pending)

  def _first_step(self) -> None:
    self.progress.message('compiling the training step')
    start = time.perf_counter()
    self._one_step()
    jax.block_until_ready(self.state.step)
    self.timed_from = (self.step, time.perf_counter())
    self.progress.message(f'compiled and ran the first step in {self.timed_from[1] - start:.1f} s')

  def _one_step(self) -> None:
    try:
      batch = next(self.batches)
    except StopIteration:
      raise ValueError(f'The training data ended at step {self.step} of {self.config.num_steps}.') from None
    self.state, metrics = self.train_step(self.state, to_global(batch, self.mesh))
    self.step += 1
    self.eval_loss = None
    self.totals.add(self.state.step, metrics)
    if _is_due(self.config.log_every, self.step) or self._is_last():
      self.pending = (self.step, self.totals.take(), metrics)
    self.progress.update(self.step)

  def _after_step(self) -> bool:
    """What is due besides the step itself; True when training is over."""
    config, step = self.config, self.step
    if self.eval_batches is not None and config.eval_every and (_is_due(config.eval_every, step) or self._is_last()):
      with self._aside():
        self._evaluate()
    for hook in self.hooks:
      if hook.is_due(step, config.num_steps):
        with self._aside():
          hook.fn(self.state, step)
    stop = self._must_stop()
    if stop or _is_due(config.checkpoint_every, step) or self._is_last():
      with self._aside():
        self._save()
    if stop:
      self.checkpoints.wait_until_finished()
      raise Interrupted(
        f'Stopped on request at step {step} of {config.num_steps}; saved in {self.checkpoints.directory}. '
        'The same command continues from there.'
      )
    if self._is_last():
      self.checkpoints.wait_until_finished()
    return self._is_last()

  def _is_last(self) -> bool:
    return self.step >= self.config.num_steps

  def _must_stop(self) -> bool:
    if jax.process_count() == 1:
      return self.stop.stop_requested
    # A signal may reach one host only; all must agree on the step, which takes a message and so is not done each step.
    if not (_is_due(self.config.log_every, self.step) or self._is_last()):
      return False
    return bool(np.any(multihost_utils.process_allgather(np.asarray(self.stop.stop_requested))))

  @contextlib.contextmanager
  def _aside(self) -> Iterator[None]:
    """Keeps the time of something else than steps out of their rate; steps on their way are waited for first."""
    pending, self.pending = self.pending, None
    self._write(pending)
    jax.block_until_ready(self.state.step)
    start = time.perf_counter()
    yield
    self.aside_s += time.perf_counter() - start

  def _write(self, pending: tuple[int, Any, Any] | None) -> None:
    if pending is None:
      return
    step, totals, last = pending
    totals, last = jax.device_get((totals, last))
    self._check_finite(totals, step)
    values = {name: float(total) / int(totals['count']) for name, total in totals['sums'].items()}
    values['learning_rate'] = float(last['learning_rate'])
    if 'halved_after' in values:
      del values['halved_after']
      self._tell_of_halving(int(last['halved_after']), values['learning_rate'])
    values |= self._rates(step)
    self.writer.write(step, values)
    self.logged_step = step
    self.progress.update(self.step, loss=values['loss'])

  def _tell_of_halving(self, halved_after: int, rate: float) -> None:
    """Says so where the learning rate has been halved since the last log line."""
    if halved_after and halved_after >= self.logged_step:
      self.progress.message(f'the learning rate was halved to {rate:g} after step {halved_after}')

  def _rates(self, step: int) -> dict[str, float]:
    now = time.perf_counter()
    steps, seconds = step - self.timed_from[0], now - self.timed_from[1] - self.aside_s
    self.timed_from, self.aside_s = (step, now), 0.0
    if not steps or seconds <= 0:
      return {}  # the first step alone, which is mostly compilation
    return {'steps_per_second': steps / seconds, 'examples_per_second': steps * self.config.batch_size / seconds}

  def _check_finite(self, totals: Any, step: int) -> None:
    bad_step = int(totals['bad_step'])
    if bad_step < 0:
      return
    self.checkpoints.wait_until_finished()
    steps = self.checkpoints.steps()
    good = f'The last good checkpoint is step {steps[-1]}' if steps else 'No checkpoint had been written yet'
    shown = ', '.join(f'{name}={float(value):g}' for name, value in sorted(totals['bad'].items()))
    raise NonFiniteError(
      f'Training of {self.task.name} became non-finite at step {bad_step} (found when steps {self.logged_step + 1} to '
      f'{step} were checked): {shown}. {good} (in {self.checkpoints.directory}). The same command would '
      f'continue there and, where the cause is not the machine, end here again: lower config.{self.task.name}_training.'
      'learning_rate (or muon_learning_rate) or clip_norm, or lengthen warmup_steps, in a new --workdir.'
    )

  def _evaluate(self) -> None:
    params = all_params(self.state, ema=True)
    means = evaluate_batches(self.eval_step, params, self.eval_batches(), self.mesh, self.seed, self.state.step)
    values = {name: float(value) for name, value in self.task.summarize(means).items()}
    self.writer.write(self.step, {f'eval/{name}': value for name, value in values.items()})
    self.progress.update(self.step, eval_loss=values['loss'])
    if math.isfinite(values['loss']):
      self.eval_loss = values['loss']
      if self.eval_loss < self.history.get('best_loss', math.inf):
        self.history = {'best_loss': self.eval_loss, 'best_step': self.step}

  def _save(self) -> None:
    totals = self.totals.peek()
    if totals is not None:
      self._check_finite(jax.device_get(totals), self.step)
    meta = {**self.meta, 'history': self.history}
    self.checkpoints.save(self.step, self.state, self.batches.state(), meta, self.eval_loss)


def _is_due(every: int, step: int) -> bool:
  return every > 0 and step % every == 0
