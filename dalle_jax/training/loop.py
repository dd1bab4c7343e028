"""The training loop of every task: steps, log lines, evaluation, hooks, checkpoints and stop requests."""

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dalle_jax.config import LoggingConfig, TrainingConfig
from dalle_jax.sharding import check_batch, use_mesh
from dalle_jax.training.bad_records import BadDataError, LeftOutError
from dalle_jax.training.checkpoint import Checkpoints, Restored
from dalle_jax.training.clock import IntervalClock
from dalle_jax.training.feed import BatchStream, Feed
from dalle_jax.training.flops import utilisation_per_rate
from dalle_jax.training.metrics_log import make_writer
from dalle_jax.training.monitors import open_monitors
from dalle_jax.training.nonfinite import NonFiniteError, advice, shown_metrics
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.profile import Profiler
from dalle_jax.training.progress import Progress
from dalle_jax.training.schedule import remarks
from dalle_jax.training.signals import Interrupted, StopSignals
from dalle_jax.training.state import TrainState, abstract_state, all_params, create_state
from dalle_jax.training.step import IntervalTotals, evaluate_batches, make_eval_step, make_train_step
from dalle_jax.training.watchdog import Watchdog

CHECKPOINTS = 'checkpoints'  # subdirectory of the work directory
# Steps that may be dispatched without being known to have finished. More would only hold memory for their batches.
IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Hook:
  """A function called during training, for example to save a sheet of samples."""

  every: int  # steps between calls; 0: no calls except after the last step if `last` is True
  fn: Callable[[TrainState, int], None]  # fn(state, step); must not keep references to the state's arrays
  last: bool = False  # whether to call it after the last step too

  def is_due(self, step: int, num_steps: int) -> bool:
    return _is_due(self.every, step) or (self.last and step == num_steps)


def train(
  task: Any,
  config: TrainingConfig,
  *,
  mesh: jax.sharding.Mesh,
  seed: int,
  workdir: Path,
  batches: BatchStream,
  eval_batches: Callable[[], Iterable[Any]] | None = None,
  hooks: Sequence[Hook] = (),
  logging: LoggingConfig | None = None,
  initial: Mapping[str, Any] | None = None,
  about: Mapping[str, Any] | None = None,
  profile: tuple[int, ...] = (),
) -> TrainState:
  """Train up to step config.num_steps, resuming from workdir/checkpoints if it holds any.

  A resumed run equals an uninterrupted one bit for bit: parameters, optimizer state, averages, metrics and data order.
  If the newest checkpoint already is at config.num_steps, its state is returned at once. A checkpoint is always saved
  after the last step and on a stop request, whatever config.checkpoint_every is.

  Args:
    task: a `tasks.Task`.
    seed: of all random streams of the run.
    workdir: receives checkpoints/, metrics.jsonl, tensorboard/ and profile/.
    batches: numpy batches with this process's rows (`sharding.own_rows`) of each batch of config.batch_size examples.
    eval_batches: returns a fresh iterator of held-out batches, equally many in every process. Evaluation uses the
      averaged parameters if config.ema_decay is above 0.
    initial: whole collections to start from, for example {'dvae': params of a trained dVAE}.
    about: description of the run that every checkpoint stores (`description.describe`).
    profile: first and last step of a profiler trace; () for no trace.

  Raises:
    ValueError: the mesh does not divide the batch, or the initial parameters or the checkpoints do not fit the task.
    NonFiniteError: training diverged.
    Interrupted: Ctrl-C or SIGTERM arrived; the state was saved first.
  """
  check_batch(config, mesh, f'{task.name}_training')
  workdir, logging = Path(workdir), logging or LoggingConfig()
  with contextlib.ExitStack() as stack:
    stack.enter_context(use_mesh(mesh))
    checkpoints = stack.enter_context(Checkpoints(workdir / CHECKPOINTS, config.keep_checkpoints, about))
    tx = make_optimizer(config)
    abstract = abstract_state(task, tx, mesh, config.ema_decay > 0)
    restored = checkpoints.restore_latest(abstract)
    if restored is not None and restored.step >= config.num_steps:
      return restored.state
    feed = Feed(batches, mesh)
    monitors = open_monitors(stack, task.name, config.num_steps, workdir, logging.stall_seconds, profile)
    run = _Run(
      task=task, config=config, mesh=mesh, seed=seed, feed=feed, eval_batches=eval_batches, hooks=hooks,
      abstract=abstract, checkpoints=checkpoints, **monitors,
      make_state=lambda: create_state(task, tx, mesh, seed, config.ema_decay > 0, initial),
      open_writer=lambda step: make_writer(workdir, logging, jax.process_index() == 0, step),
      train_step=make_train_step(task, tx, config, mesh, seed), eval_step=make_eval_step(task, mesh),
    )  # fmt: skip
    stack.callback(run.close)
    run.begin(restored)
    return run.run()


@dataclasses.dataclass(frozen=True)
class _LogLine:
  """A log line whose metrics may still be on the devices."""

  step: int
  totals: Any  # from `IntervalTotals.take`
  last: Any  # metrics of the line's last step
  host: dict[str, float]  # values measured on the host
  num_bad: Any  # from `BadRecords.total`
  num_read: int  # from `Feed.num_read`


@dataclasses.dataclass(kw_only=True)
class _Run:
  """One call of `train`: the objects that it uses, followed by the values that change from step to step."""

  task: Any
  config: TrainingConfig
  mesh: jax.sharding.Mesh
  seed: int
  feed: Feed
  eval_batches: Callable[[], Iterable[Any]] | None
  hooks: Sequence[Hook]
  abstract: TrainState
  make_state: Callable[[], TrainState]
  checkpoints: Checkpoints
  open_writer: Callable[[int], Any]
  progress: Progress
  watchdog: Watchdog
  profiler: Profiler
  stop: StopSignals
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]

  _state: TrainState | None = None
  step: int = 0
  history: dict[str, Any] = dataclasses.field(default_factory=dict)  # best held-out loss and its step
  totals: IntervalTotals = dataclasses.field(default_factory=IntervalTotals)
  clock: IntervalClock = dataclasses.field(default_factory=IntervalClock)
  writer: Any = None
  in_flight: deque[Any] = dataclasses.field(default_factory=deque)  # losses of the dispatched, unfinished steps
  pending: _LogLine | None = None
  num_left_out: int = 0  # held-out records that evaluations leave out because they cannot be read
  eval_loss: float | None = None  # held-out loss at the current step, if it was measured
  logged_step: int = 0
  logged_skipped: int = 0  # skipped updates up to `logged_step`
  counted_bad: tuple[int, int] = (0, 0)  # bad records and batches up to a recent step, equal on all hosts
  is_compiled: bool = False
  # Model-FLOPs utilisation at one step per second; None if the peak FLOP/s of the devices is unknown.
  utilisation_per_rate: float | None = None

  @property
  def state(self) -> TrainState:
    """The current state. There is none before `begin` and while a checkpoint is restored."""
    assert self._state is not None
    return self._state

  def begin(self, restored: Restored | None, excluded: Iterable[int] = ()) -> None:
    """Start from a checkpoint, or from the beginning if `restored` is None.

    Args:
      restored: the checkpoint.
      excluded: numbers of the batches to leave out of training.
    """
    self.close()
    self.step = self.logged_step = restored.step if restored else 0
    self._state = restored.state if restored else self.make_state()
    self.logged_skipped = int(self.state.skipped)
    if restored or excluded:
      self._restore_position(restored, set(excluded))
    self.clock.restart(self.step)
    self.writer = self.open_writer(self.step)
    if restored:
      self.progress.message(f'continuing from step {self.step}')

  def _restore_position(self, restored: Restored | None, excluded: set[int]) -> None:
    """Restore everything but the state: history, interval metrics and data position."""
    meta = restored.meta if restored else {}
    self.history = meta.get('history', {})
    self.totals.restore(meta.get('totals'))
    self.in_flight.clear()
    self.pending, self.eval_loss = None, None
    position = restored.data if restored else self.feed.start
    # Checkpoints of format 1 have neither excluded batches nor the metrics of the open interval.
    excluded |= set(meta.get('excluded', ()))
    self.feed.restore(position, meta.get('num_batches', self.step), excluded, meta.get('bad_records'))
    self.counted_bad = self.feed.bad.forgiven

  def close(self) -> None:
    if self.writer is not None:
      self.writer.close()
      self.writer = None

  def run(self) -> TrainState:
    """Train to the last step, rewinding after non-finite steps if config.nonfinite asks for it."""
    for sentence in remarks(self.config, f'{self.task.name}_training'):
      self.progress.message(sentence)
    while True:
      try:
        return self._run_to_end()
      except NonFiniteError as error:
        self._rewind(error)
      except BadDataError as error:
        raise self._end_for_bad_data(error) from error

  def _run_to_end(self) -> TrainState:
    if not self.is_compiled:
      self._first_step()
    else:
      self._one_step()
    while not self._after_step():
      self._one_step()
    return self.state

  def _first_step(self) -> None:
    self.progress.message('compiling the training step')
    self.watchdog.set_activity('compiling', self.step)
    start = self.clock.now()
    self._one_step()
    jax.block_until_ready(self.state.step)
    self.clock.restart(self.step)  # compilation dominates the first step, so it must not enter the rate
    self.is_compiled = True
    self.progress.message(f'compiled and ran the first step in {self.clock.now() - start:.1f} s')

  def _one_step(self) -> None:
    batch = self.feed.next()
    if not self.is_compiled:
      self.utilisation_per_rate = utilisation_per_rate(self.task, batch, self.mesh)
    self.profiler.before(self.step + 1)
    if self.is_compiled:
      self.watchdog.set_activity('step', self.step)
    self._state, metrics = self.train_step(self.state, batch)
    self.step += 1
    self.eval_loss = None
    self.totals.add(self.state.step, metrics)
    self.in_flight.append(metrics['loss'])
    if self.profiler.after(self.step, metrics):
      self.progress.message(f'saved a profiler trace ending at step {self.step} to {self.profiler.directory}')
    if not self._is_last():
      self._prepare_batch(metrics)
    if len(self.in_flight) > IN_FLIGHT:
      jax.block_until_ready(self.in_flight.popleft())
    if _is_due(self.config.log_every, self.step) or self._is_last():
      self._log(metrics)
    self.progress.update(self.step)

  def _prepare_batch(self, metrics: Any) -> None:
    """Read the next batch, and count the time as waiting for data if the devices became idle meanwhile."""
    self.watchdog.set_activity('waiting for data', self.step)
    start = self.clock.now()
    self.feed.prepare()
    # Reading a batch while the devices are busy costs nothing.
    if metrics['loss'].is_ready():
      self.clock.add('data', self.clock.now() - start)
    self.watchdog.set_activity('step', self.step)  # from here on, any wait is for the devices

  def _log(self, metrics: Any) -> None:
    """Write the previous log line and hold this one back.

    The metrics of the previous line are ready by now, so writing it never waits for the devices.
    """
    previous, self.pending = self.pending, None
    if not self.is_compiled:
      # With log_every=1 this runs before `_first_step` restarts the clock; compilation must not enter the rate.
      self.clock.restart(self.step)
    host, rate = self.clock.take(self.step)
    if rate:
      host |= {'steps_per_second': rate, 'examples_per_second': rate * self.config.batch_size}
      if self.utilisation_per_rate is not None:
        host['model_flops_utilisation'] = rate * self.utilisation_per_rate
    self.pending = _LogLine(self.step, self.totals.take(), metrics, host, self.feed.bad.total(), self.feed.num_read)
    self._write(previous)

  def _after_step(self) -> bool:
    """Evaluate, call hooks and save if they are due at this step; return True if it was the last step."""
    config, step = self.config, self.step
    if self.eval_batches is not None and config.eval_every and (_is_due(config.eval_every, step) or self._is_last()):
      with self._outside_steps('evaluation'):
        self._evaluate()
    for hook in self.hooks:
      if hook.is_due(step, config.num_steps):
        with self._outside_steps('pictures'):
          hook.fn(self.state, step)
    if jax.process_count() == 1:  # several hosts know their sum only when they write a log line
      self.counted_bad = self.feed.bad.total(), self.feed.num_read
    self.feed.check_bad(*self.counted_bad)  # before saving, so that the checkpoint knows what it has forgiven
    stop = self.stop.must_stop(self.checkpoints.reached_preemption)
    if stop or _is_due(config.checkpoint_every, step) or self._is_last():
      with self._outside_steps('checkpoint'):
        self._save()
    if stop or self._is_last():
      self.checkpoints.wait_until_finished()
    # Ask again: a stop request that arrived while the last checkpoint was written must not be lost.
    if stop or (self._is_last() and self.stop.must_stop(self.checkpoints.reached_preemption)):
      raise Interrupted(
        f'Stopped on request at step {step} of {config.num_steps}. The checkpoint is in {self.checkpoints.directory}; '
        'run the same command again to continue.'
      )
    return self._is_last()

  def _is_last(self) -> bool:
    return self.step >= self.config.num_steps

  @contextlib.contextmanager
  def _outside_steps(self, activity: str) -> Iterator[None]:
    """Count the time inside under `activity` instead of under training steps.

    First waits for the steps in flight, writes their log line and checks that they are finite.
    """
    jax.block_until_ready(self.state.step)
    self.in_flight.clear()
    previous, self.pending = self.pending, None
    self._write(previous)
    totals = self.totals.peek()
    if totals is not None:
      self._check_finite(jax.device_get(totals), self.step, report_skips=False)
    self.watchdog.set_activity(activity, self.step)
    with self.clock.spent_on(activity):
      yield

  def _write(self, line: _LogLine | None) -> None:
    """Check that the metrics of a log line are finite, then write and show them."""
    if line is None:
      return
    totals, last, num_bad = jax.device_get((line.totals, line.last, line.num_bad))
    self._check_finite(totals, line.step)
    self.counted_bad = int(num_bad), line.num_read
    count = int(totals['count'])
    values = {name: float(total) / count for name, total in totals['sums'].items()} if count else {}
    values['learning_rate'] = float(last['learning_rate'])
    if 'halved_after' in last:
      values.pop('halved_after', None)
      halved_after = int(last['halved_after'])  # number of updates, not counting skipped ones; 0: never halved
      if halved_after and halved_after >= self.logged_step - self.logged_skipped:
        self.progress.message(f'the learning rate was halved to {values["learning_rate"]:g} after step {halved_after}')
    if 'skipped_updates' in last:
      values['skipped_updates'] = float(last['skipped_updates'])
    self.writer.write(line.step, values | line.host | {'bad_records': float(num_bad)})
    self.logged_step, self.logged_skipped = line.step, int(last.get('skipped_updates', self.logged_skipped))
    self.progress.update(self.step, **({'loss': values['loss']} if count else {}))

  def _check_finite(self, totals: Any, step: int, report_skips: bool = True) -> None:
    """Check that the steps since the last log line are finite.

    Args:
      totals: the interval's `IntervalTotals`, on the host.
      step: last step of the interval.
      report_skips: whether to print a message if updates were skipped.

    Raises:
      NonFiniteError: a step was not finite, and config.nonfinite or config.max_nonfinite does not allow skipping it.
    """
    bad_step, bad_count = int(totals['bad_step']), int(totals['bad_count'])
    if bad_step < 0:
      return
    policy, limit = self.config.nonfinite, self.config.max_nonfinite
    policy = 'infinite parameters' if policy == 'skip' and int(totals['spoilt']) else policy
    may_skip = policy == 'skip' and int(totals['bad']['skipped_updates']) + bad_count - 1 <= limit
    if may_skip and not report_skips:
      return
    problem = (
      f'step {bad_step} (detected when steps {self.logged_step + 1} to {step} were checked): '
      f'{shown_metrics(totals["bad"])}. '
      f'Records of its batch: {self.feed.shown_records(bad_step, self.config.batch_size)}.'
    )
    if may_skip:
      self.progress.message(f'skipped {bad_count} non-finite update(s), the first at {problem}')
      return
    self.checkpoints.wait_until_finished()
    steps, directory = self.checkpoints.steps(), self.checkpoints.directory
    if steps:
      checkpoint = f'The last good checkpoint is step {steps[-1]} in {directory}.'
    else:
      checkpoint = f'No checkpoint has been written to {directory} yet.'
    raise NonFiniteError(
      f'Training of {self.task.name} became non-finite at {problem} {checkpoint}',
      advice(policy, limit, f'config.{self.task.name}_training'),
      bad_step,
    )

  def _rewind(self, error: NonFiniteError) -> None:
    """Restore the last checkpoint and exclude the batch that caused the error.

    Raises:
      NonFiniteError: the same error again, if config.nonfinite or config.max_nonfinite does not allow a rewind.
    """
    if self.config.nonfinite != 'rewind' or len(self.feed.excluded) >= self.config.max_nonfinite:
      raise error
    number = self.feed.number_of(error.step)
    self._state = None  # free it first: device memory may not hold two states
    restored = self.checkpoints.restore_latest(self.abstract)
    goal = f'step {restored.step}' if restored else 'the start'
    self.progress.message(f'{error.problem} Rewinding to {goal} and excluding batch {number}.')
    self.begin(restored, {*self.feed.excluded, number})

  def _end_for_bad_data(self, error: BadDataError) -> ValueError:
    """Save a checkpoint of the last step if all hosts can, and return the error that ends the run."""
    if self.step and error.on_all_hosts and self.step not in self.checkpoints.steps():
      with self._outside_steps('checkpoint'):
        self._save()
    self.checkpoints.wait_until_finished()
    return error.final(self.checkpoints.steps(), self.checkpoints.directory)

  def _evaluate(self) -> None:
    """Evaluate on the held-out batches, write the results, and update the best loss."""
    assert self.eval_batches is not None  # else no evaluation is due
    params = all_params(self.state, ema=True)
    try:
      means = evaluate_batches(self.eval_step, params, self.eval_batches(), self.mesh, self.seed, self.state.step)
    except LeftOutError as error:  # each time at least one record more, so this ends
      self.num_left_out = error.count
      self.progress.message(f'evaluating again without the {error.count} held-out records that cannot be read')
      self._evaluate()
      return
    values = {name: float(value) for name, value in self.task.summarize(means).items()}
    left_out = {'eval/left_out_records': float(self.num_left_out)} if self.num_left_out else {}
    self.writer.write(self.step, {f'eval/{name}': value for name, value in values.items()} | left_out)
    self.progress.update(self.step, eval_loss=values['loss'])
    if math.isfinite(values['loss']):
      self.eval_loss = values['loss']
      if self.eval_loss < self.history.get('best_loss', math.inf):
        self.history = {'best_loss': self.eval_loss, 'best_step': self.step}

  def _save(self) -> None:
    meta = {
      'history': self.history,
      'totals': self.totals.state(),
      'num_batches': self.feed.num_read,
      'excluded': list(self.feed.excluded),
      'bad_records': self.feed.bad.state(),
    }
    self.checkpoints.save(self.step, self.state, self.feed.position, meta, self.eval_loss)


def _is_due(every: int, step: int) -> bool:
  return every > 0 and step % every == 0
