"""The training loop: steps, log lines, evaluation, hooks, checkpoints and stop requests, for any task."""

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dalle_jax import hardware
from dalle_jax.config import LoggingConfig, TrainingConfig
from dalle_jax.sharding import check_batch, use_mesh
from dalle_jax.training.checkpoint import Checkpoints, Restored
from dalle_jax.training.clock import IntervalClock
from dalle_jax.training.feed import BatchStream, Feed
from dalle_jax.training.flops import step_flops
from dalle_jax.training.metrics_log import make_writer
from dalle_jax.training.nonfinite import NonFiniteError, advice, shown_metrics
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.profile import Profiler
from dalle_jax.training.progress import Progress
from dalle_jax.training.signals import Interrupted, StopSignals
from dalle_jax.training.state import TrainState, abstract_state, all_params, create_state
from dalle_jax.training.step import IntervalTotals, evaluate_batches, make_eval_step, make_train_step
from dalle_jax.training.watchdog import Watchdog

CHECKPOINTS = 'checkpoints'  # the directory under the run's own
IN_FLIGHT = 2  # steps given to the devices and not known to be done: more would only take memory for their batches


@dataclasses.dataclass(frozen=True)
class Hook:
  """Something to do on the way, such as a sheet of samples; `fn(state, step)` must not keep the state's arrays."""

  every: int  # in steps; 0: never on the way
  fn: Callable[[TrainState, int], None]
  last: bool = False  # also after the last step

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
  """Trains to config.num_steps, continuing from workdir/checkpoints where there are any.

  A resumed run gives, bit for bit, what an uninterrupted one does: parameters, optimizer, averages, metrics and order
  of data. A finished one returns at once. A checkpoint is written at the end and on a stop request whatever
  config.checkpoint_every is.

  Args:
    workdir: gets checkpoints/, metrics.jsonl, tensorboard/ and profile/.
    batches: numpy batches of this process's rows (`sharding.own_rows`) of config.batch_size examples.
    eval_batches: makes the held-out batches anew for each evaluation, with the same number in every process; it is
      judged with the averaged parameters if config.ema_decay is above 0.
    initial: whole collections to start from, such as {'dvae': a trained dVAE}.
    about: what every checkpoint says of itself (`description.describe`).
    profile: the first and the last step of a trace; () for none.

  Raises:
    ValueError: the batch does not split over the mesh; initial parameters or checkpoints do not fit the task.
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
    is_main = jax.process_index() == 0
    run = _Run(
      task=task,
      config=config,
      mesh=mesh,
      seed=seed,
      feed=Feed(batches, mesh),
      eval_batches=eval_batches,
      hooks=hooks,
      abstract=abstract,
      make_state=lambda: create_state(task, tx, mesh, seed, config.ema_decay > 0, initial),
      checkpoints=checkpoints,
      open_writer=lambda step: make_writer(workdir, logging, is_main, step),
      progress=stack.enter_context(Progress(task.name, config.num_steps, enabled=is_main)),
      watchdog=stack.enter_context(Watchdog(task.name, logging.stall_seconds, jax.process_index())),
      profiler=stack.enter_context(Profiler(_own_part(workdir / 'profile'), profile)),
      stop=stack.enter_context(StopSignals(several_hosts=jax.process_count() > 1)),
      train_step=make_train_step(task, tx, config, mesh, seed),
      eval_step=make_eval_step(task, mesh),
    )
    stack.callback(run.close)
    run.begin(restored)
    return run.run()


@dataclasses.dataclass(frozen=True)
class _Line:
  """A log line whose metrics are still on the devices."""

  step: int
  totals: Any
  last: Any  # metrics of its last step
  host: dict[str, float]  # what the host measured


@dataclasses.dataclass(kw_only=True)
class _Run:
  """One call of `train`: its parts and what changes from step to step."""

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

  state: TrainState | None = None
  step: int = 0
  history: dict[str, Any] = dataclasses.field(default_factory=dict)  # the best held-out loss and its step
  totals: IntervalTotals = dataclasses.field(default_factory=IntervalTotals)
  clock: IntervalClock = dataclasses.field(default_factory=IntervalClock)
  writer: Any = None
  in_flight: deque[Any] = dataclasses.field(default_factory=deque)  # metrics of the steps not known to be done
  pending: _Line | None = None
  eval_loss: float | None = None  # of the state at the current step, where it was measured
  logged_step: int = 0
  logged_skipped: int = 0  # updates up to there that were skipped
  is_compiled: bool = False
  utilisation_per_rate: float | None = None  # model-FLOPs utilisation at one step a second, where it can be known

  def begin(self, restored: Restored | None, excluded: Iterable[int] = ()) -> None:
    """Takes up a checkpoint, or begins anew, passing over the batches `excluded`."""
    self.close()
    self.step = self.logged_step = restored.step if restored else 0
    self.state = restored.state if restored else self.make_state()
    self.logged_skipped = int(self.state.skipped)
    if restored or excluded:
      self._take_up(restored, set(excluded))
    self.clock.restart(self.step)
    self.writer = self.open_writer(self.step)
    if restored:
      self.progress.message(f'continuing from step {self.step}')

  def _take_up(self, restored: Restored | None, excluded: set[int]) -> None:
    meta = restored.meta if restored else {}
    self.history = meta.get('history', {})
    self.totals.restore(meta.get('totals'))
    self.in_flight.clear()
    self.pending, self.eval_loss = None, None
    position = restored.data if restored else self.feed.start
    # The first format had neither passed over batches nor kept the interval's metrics.
    self.feed.restore(position, meta.get('num_batches', self.step), excluded | set(meta.get('excluded', ())))

  def close(self) -> None:
    if self.writer is not None:
      self.writer.close()
      self.writer = None

  def run(self) -> TrainState:
    while True:
      try:
        return self._run_on()
      except NonFiniteError as error:
        self._rewind(error)

  def _run_on(self) -> TrainState:
    if not self.is_compiled:
      self._first_step()
    else:
      self._one_step()
    while not self._after_step():
      self._one_step()
    return self.state

  def _first_step(self) -> None:
    self.progress.message('compiling the training step')
    self.watchdog.tell('compiling', self.step)
    start = self.clock.now()
    self._one_step()
    jax.block_until_ready(self.state.step)
    self.clock.restart(self.step)  # a first step alone, mostly compilation, is no rate
    self.is_compiled = True
    self.progress.message(f'compiled and ran the first step in {self.clock.now() - start:.1f} s')

  def _one_step(self) -> None:
    batch = self.feed.next()
    self._measure_flops(batch)
    self.profiler.before(self.step + 1)
    if self.is_compiled:
      self.watchdog.tell('step', self.step)
    self.state, metrics = self.train_step(self.state, batch)
    self.step += 1
    self.eval_loss = None
    self.totals.add(self.state.step, metrics)
    self.in_flight.append(metrics['loss'])
    if self.profiler.after(self.step, metrics):
      self.progress.message(f'a trace of steps up to {self.step} is in {self.profiler.directory}')
    if not self._is_last():
      self._prepare_batch(metrics)
    if len(self.in_flight) > IN_FLIGHT:
      jax.block_until_ready(self.in_flight.popleft())
    if _is_due(self.config.log_every, self.step) or self._is_last():
      self._line_is_due(metrics)
    self.progress.update(self.step)

  def _prepare_batch(self, metrics: Any) -> None:
    self.watchdog.tell('waiting for data', self.step)
    start = self.clock.now()
    self.feed.prepare()
    # What is read while the devices are busy costs nothing.
    if metrics['loss'].is_ready():
      self.clock.add('data', self.clock.now() - start)
    self.watchdog.tell('step', self.step)  # what is waited for from here on are the devices

  def _measure_flops(self, batch: Any) -> None:
    """Once; a device whose peak is not known has no utilisation."""
    chip = hardware.chip(self.mesh.devices.flat[0].device_kind)
    if self.is_compiled or chip is None:
      return
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    self.utilisation_per_rate = step_flops(self.task, shapes) / (chip.peak_flops * self.mesh.size)

  def _line_is_due(self, metrics: Any) -> None:
    """Writes the line before this one, whose metrics are long there, so that nothing waits for the devices."""
    former, self.pending = self.pending, None
    if not self.is_compiled:
      self.clock.restart(self.step)  # as in `_first_step`, which has not come there yet where every step has a line
    host, rate = self.clock.take(self.step)
    if rate:
      host |= {'steps_per_second': rate, 'examples_per_second': rate * self.config.batch_size}
      if self.utilisation_per_rate is not None:
        host['model_flops_utilisation'] = rate * self.utilisation_per_rate
    self.pending = _Line(self.step, self.totals.take(), metrics, host)
    self._write(former)

  def _after_step(self) -> bool:
    """What is due besides the step itself; True when training is over."""
    config, step = self.config, self.step
    if self.eval_batches is not None and config.eval_every and (_is_due(config.eval_every, step) or self._is_last()):
      with self._aside('evaluation'):
        self._evaluate()
    for hook in self.hooks:
      if hook.is_due(step, config.num_steps):
        with self._aside('pictures'):
          hook.fn(self.state, step)
    stop = self.stop.must_stop(self.checkpoints.reached_preemption)
    if stop or _is_due(config.checkpoint_every, step) or self._is_last():
      with self._aside('checkpoint'):
        self._save()
    if stop or self._is_last():
      self.checkpoints.wait_until_finished()
    # Asked again, as a request that came while the last checkpoint was written would be forgotten.
    if stop or (self._is_last() and self.stop.must_stop(self.checkpoints.reached_preemption)):
      raise Interrupted(
        f'Stopped on request at step {step} of {config.num_steps}; saved in {self.checkpoints.directory}. '
        'The same command continues from there.'
      )
    return self._is_last()

  def _is_last(self) -> bool:
    return self.step >= self.config.num_steps

  @contextlib.contextmanager
  def _aside(self, activity: str) -> Iterator[None]:
    """Keeps the time of something else than steps apart.

    Steps on their way are waited for, written down and found finite first.
    """
    jax.block_until_ready(self.state.step)
    self.in_flight.clear()
    former, self.pending = self.pending, None
    self._write(former)
    totals = self.totals.peek()
    if totals is not None:
      self._check_finite(jax.device_get(totals), self.step, tell=False)
    self.watchdog.tell(activity, self.step)
    with self.clock.spent_on(activity):
      yield

  def _write(self, line: _Line | None) -> None:
    if line is None:
      return
    totals, last = jax.device_get((line.totals, line.last))
    self._check_finite(totals, line.step)
    count = int(totals['count'])
    values = {name: float(total) / count for name, total in totals['sums'].items()} if count else {}
    values['learning_rate'] = float(last['learning_rate'])
    if 'halved_after' in last:
      values.pop('halved_after', None)
      self._tell_of_halving(int(last['halved_after']), values['learning_rate'])
    if 'skipped_updates' in last:
      values['skipped_updates'] = float(last['skipped_updates'])
    self.writer.write(line.step, values | line.host)
    self.logged_step, self.logged_skipped = line.step, int(last.get('skipped_updates', self.logged_skipped))
    self.progress.update(self.step, **({'loss': values['loss']} if count else {}))

  def _tell_of_halving(self, halved_after: int, rate: float) -> None:
    """Says so where the learning rate has been halved since the last log line; skipped updates are not counted."""
    if halved_after and halved_after >= self.logged_step - self.logged_skipped:
      self.progress.message(f'the learning rate was halved to {rate:g} after step {halved_after}')

  def _check_finite(self, totals: Any, step: int, tell: bool = True) -> None:
    """Raises NonFiniteError, or only tells of the updates that were skipped, where they are few enough."""
    bad_step, count = int(totals['bad_step']), int(totals['bad_count'])
    if bad_step < 0:
      return
    policy, limit = self.config.nonfinite, self.config.max_nonfinite
    policy = 'spoilt' if policy == 'skip' and int(totals['spoilt']) else policy
    may_skip = policy == 'skip'
    too_many = may_skip and int(totals['bad']['skipped_updates']) + count - 1 > limit
    if may_skip and not too_many and not tell:
      return
    found = (
      f'step {bad_step} (found when steps {self.logged_step + 1} to {step} were checked): '
      f'{shown_metrics(totals["bad"])}. Its batch: {self.feed.shown_records(bad_step, self.config.batch_size)}.'
    )
    if may_skip and not too_many:
      self.progress.message(f'{count} update(s) were skipped, the first of them at {found}')
      return
    self.checkpoints.wait_until_finished()
    steps, group = self.checkpoints.steps(), f'config.{self.task.name}_training'
    good = f'The last good checkpoint is step {steps[-1]}' if steps else 'No checkpoint had been written yet'
    raise NonFiniteError(
      f'Training of {self.task.name} became non-finite at {found} {good} (in {self.checkpoints.directory}).',
      advice(policy, limit, group),
      bad_step,
    )

  def _rewind(self, error: NonFiniteError) -> None:
    """Goes back to the last checkpoint, to pass over the batch of the error; raises it again where it may not."""
    if self.config.nonfinite != 'rewind' or len(self.feed.excluded) >= self.config.max_nonfinite:
      raise error
    number = self.feed.number_of(error.step)
    self.state = None  # two states may be more than the devices' memory
    restored = self.checkpoints.restore_latest(self.abstract)
    goal = f'step {restored.step}' if restored else 'the start'
    self.progress.message(f'{error.found} Going back to {goal}, and passing over batch {number}.')
    self.begin(restored, {*self.feed.excluded, number})

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
    meta = {
      'history': self.history,
      'totals': self.totals.state(),
      'num_batches': self.feed.num_read,
      'excluded': list(self.feed.excluded),
    }
    self.checkpoints.save(self.step, self.state, self.feed.position, meta, self.eval_loss)


def _own_part(directory: Path) -> Path:
  """Of a trace: JAX names files by the machine, which several processes may share."""
  return directory / f'host_{jax.process_index()}' if jax.process_count() > 1 else directory


def _is_due(every: int, step: int) -> bool:
  return every > 0 and step % every == 0
