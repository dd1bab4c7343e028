"""The compiled steps: one optimizer update, one evaluation, and the running means between two log lines."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dalle_jax.config import TrainingConfig
from dalle_jax.sharding import batch_sharding, replicated, to_global
from dalle_jax.training import compiler
from dalle_jax.training.keys import step_key
from dalle_jax.training.schedule import rate_in_force
from dalle_jax.training.state import TrainState, abstract_state, changing

Metrics = dict[str, jax.Array]


def ema_decay_at(decay: float, step: jax.Array) -> jax.Array:
  """The decay of update `step`: (1 + step) / (10 + step) until that exceeds `decay`, to forget the random start."""
  return jnp.minimum(decay, (1 + step) / (10 + step))


def make_train_step(
  task: Any, tx: optax.GradientTransformation, config: TrainingConfig, mesh: jax.sharding.Mesh, seed: int
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
  """The jitted (state, batch) -> (state, metrics); the given state is donated.

  Randomness is the stream 'train' at state.step. Metrics are replicated float32 scalars: the task's, averaged over
  micro-batches, with 'loss', 'grad_norm' (before clipping), 'param_norm' (after the update) and what
  `rate_in_force` gives. With config.nonfinite='skip' a step whose loss or gradient is not finite counts, in state.step
  and state.skipped, and changes nothing else.
  """

  def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    grads, metrics, statistics = _mean_gradients(task, state, batch, config.accumulation_steps, mesh, seed)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, value=metrics['loss'])
    params = optax.apply_updates(state.params, updates)
    metrics['grad_norm'] = optax.tree.norm(grads)
    frozen = state.frozen
    if task.updated:
      frozen = {**frozen, **task.update(frozen, statistics, step_key(seed, 'update', state.step))}
    ema = _average(config, state, changing(task, params, frozen))
    new = state.replace(params=params, frozen=frozen, opt_state=opt_state, ema=ema)
    if config.nonfinite == 'skip':
      # Not by the new parameters' norm: old and new ones would have to be there together, in memory that is not.
      finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
      new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
      new = new.replace(skipped=state.skipped + ~finite)
      metrics['skipped_updates'] = new.skipped
    metrics |= {
      'param_norm': optax.tree.norm(new.params),
      **rate_in_force(config, new.opt_state, state.step - state.skipped),
    }
    new = new.replace(step=state.step + 1)
    return new, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

  abstract = abstract_state(task, tx, mesh, use_ema=config.ema_decay > 0)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  options = compiler.options_of_steps(mesh, config.fusion_mib)
  return jax.jit(
    train_step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)), compiler_options=options or None
  )


def _average(config: TrainingConfig, state: TrainState, params: Any) -> Any:
  """The moving average after this step, which moves once in ema_every steps."""
  if state.ema is None:
    return None
  decay = ema_decay_at(config.ema_decay, state.step // config.ema_every)
  moved = functools.partial(optax.incremental_update, step_size=1 - decay)
  if config.ema_every == 1:
    return moved(params, state.ema)
  is_due = (state.step + 1) % config.ema_every == 0
  return jax.lax.cond(is_due, moved, lambda _, ema: ema, params, state.ema)


def _mean_gradients(
  task: Any, state: TrainState, batch: Any, parts: int, mesh: jax.sharding.Mesh, seed: int
) -> tuple[Any, Metrics, Any]:
  """Gradients and metrics of the whole batch, as means over `parts` micro-batches taken one after the other.

  Also the statistics of the micro-batches, stacked, where the task gives any.
  """
  key = step_key(seed, 'train', state.step)

  def loss(params: Any, part: Any, index: jax.Array | int) -> tuple[jax.Array, Metrics]:
    value, metrics = task.loss({**params, **state.frozen}, part, jax.random.fold_in(key, index), state.step)
    return value, {**metrics, 'loss': value}

  grad = jax.grad(loss, has_aux=True)
  if parts == 1:
    grads, metrics = grad(state.params, batch, 0)
    statistics = jax.tree.map(lambda s: s[None], metrics.pop('statistics', {}))
    return grads, metrics, statistics

  def body(total: Any, part_and_index: tuple[Any, jax.Array]) -> tuple[Any, Metrics]:
    grads, metrics = grad(state.params, *part_and_index)
    return jax.tree.map(jnp.add, total, grads), metrics

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  xs = (jax.tree.map(lambda x: _strided_parts(x, parts, mesh), batch), jnp.arange(parts))
  total, metrics = jax.lax.scan(body, zeros, xs)
  statistics = metrics.pop('statistics', {})
  return jax.tree.map(lambda g: g / parts, total), jax.tree.map(lambda m: m.mean(0), metrics), statistics


def _strided_parts(x: jax.Array, parts: int, mesh: jax.sharding.Mesh) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...]; part m holds rows m, m + parts, ..., so every device keeps its own rows."""
  x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
  spec = jax.sharding.PartitionSpec(None, *batch_sharding(mesh).spec)
  return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))


def make_eval_step(task: Any, mesh: jax.sharding.Mesh) -> Callable[..., dict[str, jax.Array]]:
  """The jitted (params, batch, key, step) -> task.evaluate's means, replicated."""
  return jax.jit(task.evaluate, out_shardings=replicated(mesh))


def evaluate_batches(
  eval_step: Callable[..., dict[str, jax.Array]],
  params: Any,
  batches: Iterable[Any],
  mesh: jax.sharding.Mesh,
  seed: int,
  step: jax.Array,
) -> dict[str, np.ndarray]:
  """Means over numpy batches, each weighted by its rows; batch i uses key i of the stream 'eval' every time.

  Raises:
    ValueError: there are no batches.
  """
  totals: dict[str, Any] = {}
  rows = 0
  for index, batch in enumerate(batches):
    size = len(jax.tree.leaves(batch)[0])
    means = jax.device_get(eval_step(params, to_global(batch, mesh), step_key(seed, 'eval', index), step))
    totals = {name: totals.get(name, 0.0) + size * np.asarray(mean, np.float64) for name, mean in means.items()}
    rows += size
  if not rows:
    raise ValueError('There are no batches to evaluate on: the held-out split holds less than one batch.')
  return {name: total / rows for name, total in totals.items()}


class IntervalTotals:
  """Sums of metrics on the device over the finite steps since the last log line, and which step was the first other.

  A step whose loss, gradient or parameters are not finite is counted apart, and the metrics of the first are kept.
  'spoilt' counts those that left parameters which are not finite.
  """

  def __init__(self) -> None:
    self._add = jax.jit(_add_to_totals, donate_argnums=0)
    self._totals: Any = None

  def add(self, step: jax.Array, metrics: Metrics) -> None:
    """Adds one step's metrics without waiting for them."""
    if self._totals is None or set(self._totals['sums']) != set(metrics):
      # Begun anew too where a checkpoint's interval had other metrics, as 'skip' and the version of the task decide.
      # Not one array several times: donated buffers must be distinct.
      zeros = {name: np.float32(0) for name in metrics}
      counts = {'count': np.int32(0), 'bad_count': np.int32(0), 'spoilt': np.int32(0), 'bad_step': np.int32(-1)}
      self._totals = {**counts, 'sums': zeros, 'bad': dict(zeros)}
    self._totals = self._add(self._totals, step, metrics)

  def take(self) -> Any:
    """Device arrays of the interval, which starts anew."""
    totals, self._totals = self._totals, None
    return totals

  def peek(self) -> Any:
    """Device arrays of the interval so far, or None; use them before the next `add`."""
    return self._totals

  def state(self) -> dict[str, Any] | None:
    """The same, ready for JSON, exactly."""
    return jax.tree.map(lambda x: x.item(), jax.device_get(self._totals))

  def restore(self, state: dict[str, Any] | None) -> None:
    """Continues the interval in which `state` was taken."""
    self._totals = jax.tree.map(lambda x: np.int32(x) if isinstance(x, int) else np.float32(x), state)


def _is_finite(metrics: Metrics) -> jax.Array:
  return jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm']) & jnp.isfinite(metrics['param_norm'])


def _add_to_totals(totals: Any, step: jax.Array, metrics: Metrics) -> Any:
  finite = _is_finite(metrics)
  first_bad = ~finite & (totals['bad_step'] < 0)
  return {
    'count': totals['count'] + finite,
    'bad_count': totals['bad_count'] + ~finite,
    'spoilt': totals['spoilt'] + ~jnp.isfinite(metrics['param_norm']),
    'bad_step': jnp.where(first_bad, step, totals['bad_step']),
    'sums': jax.tree.map(lambda total, new: jnp.where(finite, total + new, total), totals['sums'], metrics),
    'bad': jax.tree.map(lambda new, old: jnp.where(first_bad, new, old), metrics, totals['bad']),
  }
