"""The compiled training and evaluation steps, and the sums of metrics between two log lines."""

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
  """EMA decay of update `step`: min(decay, (1 + step) / (10 + step)), which forgets the random start quickly."""
  return jnp.minimum(decay, (1 + step) / (10 + step))


def make_train_step(
  task: Any, tx: optax.GradientTransformation, config: TrainingConfig, mesh: jax.sharding.Mesh, seed: int
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
  """Make the jitted function (state, batch) -> (state, metrics), which donates its state argument.

  Its random numbers come from the stream 'train' at state.step. Metrics are replicated float32 scalars: the task's
  metrics and 'loss', averaged over micro-batches (see `micro_scales`); 'grad_norm' (before clipping); 'param_norm'
  (after the update); and the result of `rate_in_force`.

  If config.nonfinite is 'skip', a step whose loss or gradient is not finite only increments state.step and
  state.skipped. The metric 'skipped_updates' then reports state.skipped after every step.
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
      # Checking the norm of the new parameters too would keep old and new ones in memory at once, which may not fit.
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
  options = compiler.step_options(mesh, config.fusion_mib)
  return jax.jit(
    train_step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)), compiler_options=options or None
  )


def _average(config: TrainingConfig, state: TrainState, params: Any) -> Any:
  """Return the moving average after this step. It is updated every config.ema_every steps."""
  if state.ema is None:
    return None
  decay = ema_decay_at(config.ema_decay, state.step // config.ema_every)
  moved = functools.partial(optax.incremental_update, step_size=1 - decay)
  if config.ema_every == 1:
    return moved(params, state.ema)
  is_due = (state.step + 1) % config.ema_every == 0
  return jax.lax.cond(is_due, moved, lambda _, ema: ema, params, state.ema)


def _mean_gradients(
  task: Any, state: TrainState, batch: Any, num_micro: int, mesh: jax.sharding.Mesh, seed: int
) -> tuple[Any, Metrics, Any]:
  """Mean gradients and metrics over `num_micro` micro-batches that are processed one after the other.

  Gradients equal those of the whole batch if the task's terms are means over examples, or are scaled by the task (see
  `micro_scales`). Metrics that are no means, such as a PSNR or a perplexity, are averaged over micro-batches.

  The third result stacks the micro-batches' statistics along a new first axis; it is empty if the task has none.
  """
  key = step_key(seed, 'train', state.step)

  def loss(
    params: Any, micro_batch: Any, index: jax.Array | int, scales: Metrics | None = None
  ) -> tuple[jax.Array, Metrics]:
    keywords = {'scales': scales} if scales else {}
    value, metrics = task.loss(
      {**params, **state.frozen}, micro_batch, jax.random.fold_in(key, index), state.step, **keywords
    )
    return value, {**metrics, 'loss': value}

  grad = jax.grad(loss, has_aux=True)
  if num_micro == 1:
    grads, metrics = grad(state.params, batch, 0)
    statistics = jax.tree.map(lambda s: s[None], metrics.pop('statistics', {}))
    return grads, metrics, statistics

  def body(total: Any, inputs: tuple[Any, jax.Array, Metrics]) -> tuple[Any, Metrics]:
    grads, metrics = grad(state.params, *inputs)
    return jax.tree.map(jnp.add, total, grads), metrics

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  micro_batches, indices = jax.tree.map(lambda x: _micro_batches(x, num_micro, mesh), batch), jnp.arange(num_micro)
  scales = micro_scales(task, micro_batches, jax.vmap(lambda index: jax.random.fold_in(key, index))(indices))
  total, metrics = jax.lax.scan(body, zeros, (micro_batches, indices, scales))
  statistics = metrics.pop('statistics', {})
  return jax.tree.map(lambda g: g / num_micro, total), jax.tree.map(lambda m: m.mean(0), metrics), statistics


def micro_scales(task: Any, micro_batches: Any, keys: jax.Array) -> Metrics:
  """Factors by which a task scales its means, so that their mean over micro-batches is that over the whole batch.

  A mean over what a micro-batch counts, such as its caption tokens, is scaled by this count, divided by the mean count
  of all micro-batches.

  Args:
    task: a task. If it has no `weight`, there are no factors, because all micro-batches count the same.
    micro_batches: fields [M, B / M, ...].
    keys: the keys of the micro-batches' losses, [M].

  Returns:
    For each name that `task.weight` gives, float32 factors [M].
  """
  if not hasattr(task, 'weight'):
    return {}
  counts = jax.lax.map(lambda inputs: task.weight(*inputs), (micro_batches, keys))
  return {name: jnp.where(count.sum() > 0, count / count.mean(), 1.0) for name, count in counts.items()}


def _micro_batches(x: jax.Array, num_micro: int, mesh: jax.sharding.Mesh) -> jax.Array:
  """Split [B, ...] into micro-batches [M, B / M, ...] where M = num_micro.

  Micro-batch m holds the rows m, m + M, m + 2 M, ..., so every row stays on its device.
  """
  x = x.reshape(x.shape[0] // num_micro, num_micro, *x.shape[1:]).swapaxes(0, 1)
  spec = jax.sharding.PartitionSpec(None, *batch_sharding(mesh).spec)
  return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))


def make_eval_step(task: Any, mesh: jax.sharding.Mesh) -> Callable[..., tuple[Metrics, Metrics]]:
  """Make the jitted function (params, batch, key, step) -> (means, weights), replicated over the mesh.

  `task.evaluate` computes the means. `task.weight` counts what some of the means average over. Without such a method
  there are no weights.
  """

  def evaluate(params: Any, batch: Any, key: jax.Array, step: jax.Array) -> tuple[Metrics, Metrics]:
    weights = task.weight(batch, None) if hasattr(task, 'weight') else {}
    return task.evaluate(params, batch, key, step), weights

  return jax.jit(evaluate, out_shardings=replicated(mesh))


def evaluate_batches(
  eval_step: Callable[..., tuple[Metrics, Metrics]],
  params: Any,
  batches: Iterable[Any],
  mesh: jax.sharding.Mesh,
  seed: int,
  step: jax.Array,
) -> dict[str, np.ndarray]:
  """Means of `task.evaluate` over numpy batches, weighted by their numbers of rows or by `task.weight`.

  Batch i always uses key i of the stream 'eval', so evaluations differ only in their parameters and `step`.

  Raises:
    ValueError: there are no batches.
  """
  totals: dict[str, Any] = {}
  counts: dict[str, float] = {}
  rows = 0
  for index, batch in enumerate(batches):
    size = len(jax.tree.leaves(batch)[0])
    means, weights = jax.device_get(eval_step(params, to_global(batch, mesh), step_key(seed, 'eval', index), step))
    for name, mean in means.items():
      weight = float(weights.get(name, size))
      totals[name] = totals.get(name, 0.0) + weight * np.asarray(mean, np.float64)
      counts[name] = counts.get(name, 0.0) + weight
    rows += size
  if not rows:
    raise ValueError(
      'There are no batches to evaluate on: the held-out split holds less than one batch. Hold out more examples, or '
      'lower the batch_size of this stage.'
    )
  return {name: total / counts[name] if counts[name] else 0 * total for name, total in totals.items()}


class IntervalTotals:
  """Sums of metrics since the last log line, kept on the device.

  The totals are a dictionary:

  - 'count', 'sums': number of finite steps, and sums of their metrics.
  - 'bad_count', 'bad_step', 'bad': number of steps whose loss, gradient or parameters are not finite; the first of
    them (-1 if none); and its metrics.
  - 'spoilt': number of steps after which the parameters are not finite.
  """

  def __init__(self) -> None:
    self._add = jax.jit(_add_to_totals, donate_argnums=0)
    self._totals: Any = None

  def add(self, step: jax.Array, metrics: Metrics) -> None:
    """Add the metrics of one step without waiting for the devices."""
    if self._totals is None or set(self._totals['sums']) != set(metrics):
      # Start over if the restored interval has other metric names, e.g. after changing `nonfinite` or upgrading.
      # Every entry needs its own array, because donated buffers must be distinct.
      zeros = {name: np.float32(0) for name in metrics}
      counts = {'count': np.int32(0), 'bad_count': np.int32(0), 'spoilt': np.int32(0), 'bad_step': np.int32(-1)}
      self._totals = {**counts, 'sums': zeros, 'bad': dict(zeros)}
    self._totals = self._add(self._totals, step, metrics)

  def take(self) -> Any:
    """Return the interval's device arrays and start a new interval."""
    totals, self._totals = self._totals, None
    return totals

  def peek(self) -> Any:
    """Return the interval's device arrays, or None if it is empty. The next `add` invalidates them."""
    return self._totals

  def state(self) -> dict[str, Any] | None:
    """Return the totals as exact Python numbers for JSON, or None if the interval is empty."""
    return jax.tree.map(lambda x: x.item(), jax.device_get(self._totals))

  def restore(self, state: dict[str, Any] | None) -> None:
    """Continue the interval that `state` describes."""
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
