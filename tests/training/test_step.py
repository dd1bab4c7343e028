import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dalle_jax.sharding import use_mesh
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import all_params, create_state
from dalle_jax.training.step import (
  IntervalTotals,
  ema_decay_at,
  evaluate_batches,
  make_eval_step,
  make_train_step,
)


@pytest.fixture
def run_steps(linear_task, stream, mesh, make_config):
  """Run `count` steps; return the initial state, then the state (on the host) and metrics after each step."""

  def run(count, task=None, **changes):
    config = make_config(**changes)
    task, source, tx = task or linear_task(), stream(), make_optimizer(config)
    with use_mesh(mesh):
      state = create_state(task, tx, mesh, 0, use_ema=config.ema_decay > 0)
      step = make_train_step(task, tx, config, mesh, seed=0)
      history = [(jax.tree.map(np.array, state), {})]
      for _ in range(count):
        state, metrics = step(state, next(source))
        history.append((jax.tree.map(np.array, state), jax.device_get(metrics)))
    return history

  return run


def test_gradient_accumulation_equals_the_whole_batch(run_steps):
  (whole, whole_metrics), (accumulated, accumulated_metrics) = (
    run_steps(3)[-1],
    run_steps(3, accumulation_steps=4)[-1],
  )
  for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(accumulated.params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert set(whole_metrics) == set(accumulated_metrics)
  for name, value in whole_metrics.items():
    np.testing.assert_allclose(value, accumulated_metrics[name], rtol=1e-4, atol=1e-6)


def test_micro_batches_sample_independent_noise(run_steps, linear_task):
  class Noise(linear_task):
    def loss(self, params, batch, key, step):
      value, _ = super().loss(params, batch, key, step)
      sample = jax.random.normal(key)
      return value, {'sample': sample, 'square': sample**2}

  metrics = run_steps(1, task=Noise(), accumulation_steps=4)[-1][1]
  assert metrics['square'] - metrics['sample'] ** 2 > 1e-4  # the variance over micro-batches


def test_the_metrics_of_a_step_in_closed_form(run_steps, stream):
  (before, _), (after, metrics) = run_steps(1, learning_rate=0.05)
  batch = next(stream())
  kernel, bias = before.params['model']['kernel'], before.params['model']['bias']
  error = batch['x'] @ kernel + bias + 0.5 - batch['y']
  grad = [2 * batch['x'].T @ error / error.size, 2 * error.sum(0) / error.size]
  np.testing.assert_allclose(metrics['loss'], (error**2).mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['grad_norm'], np.sqrt(sum((g**2).sum() for g in grad)), rtol=1e-4)
  norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(after.params)))
  np.testing.assert_allclose(metrics['param_norm'], norm, rtol=1e-5)
  np.testing.assert_allclose(metrics['learning_rate'], 0.05, rtol=1e-6)
  assert all(value.dtype == np.float32 and value.shape == () for value in metrics.values())


def test_the_moving_average_in_closed_form(run_steps):
  history = [state for state, _ in run_steps(4, ema_decay=0.2)]
  expected = history[0].params['model']['kernel']
  for step, decay in enumerate([0.1, 2 / 11, 0.2, 0.2]):
    expected = decay * expected + (1 - decay) * history[step + 1].params['model']['kernel']
    np.testing.assert_allclose(history[step + 1].ema['model']['kernel'], expected, rtol=1e-5)


def test_the_moving_average_may_be_updated_every_other_step(run_steps):
  history = [state for state, _ in run_steps(5, ema_decay=0.15, ema_every=2)]
  kernels = [state.params['model']['kernel'] for state in history]
  first = 0.1 * kernels[0] + 0.9 * kernels[2]
  second = 0.15 * first + 0.85 * kernels[4]
  for step, expected in enumerate([kernels[0], kernels[0], first, first, second, second]):
    np.testing.assert_allclose(history[step].ema['model']['kernel'], expected, rtol=1e-5)


@pytest.mark.parametrize('accumulation_steps', [1, 2])
def test_halvings_show_in_the_learning_rate_metric(run_steps, accumulation_steps):
  settings = {'schedule': 'plateau', 'plateau_window': 1, 'plateau_patience': 2, 'plateau_min_improvement': 1e3}
  history = run_steps(7, learning_rate=0.08, max_halvings=2, accumulation_steps=accumulation_steps, **settings)
  rates = [metrics['learning_rate'] for _, metrics in history[1:]]
  np.testing.assert_allclose(rates, [0.08, 0.08, 0.04, 0.04, 0.02, 0.02, 0.02], rtol=1e-6)
  assert [metrics['halved_after'] for _, metrics in history[1:]] == [0, 0, 2, 2, 4, 4, 4]


def test_the_ema_decay_rises_to_its_limit():
  np.testing.assert_allclose([ema_decay_at(0.999, s) for s in (0, 90, 10**6)], [0.1, 0.91, 0.999], rtol=1e-6)


def test_frozen_parameters_do_not_change_and_the_average_is_optional(run_steps):
  history = run_steps(2, ema_decay=0.0)
  first, last = history[0][0], history[-1][0]
  assert last.ema is None and int(last.step) == 2
  np.testing.assert_array_equal(first.frozen['offset']['value'], last.frozen['offset']['value'])
  assert not np.array_equal(first.params['model']['kernel'], last.params['model']['kernel'])


def test_evaluation_weights_batches_by_their_rows(linear_task, stream, mesh):
  task = linear_task()
  big, small = next(stream(batch_size=6)), next(stream(batch_size=2, seed=1))
  with use_mesh(mesh):
    params = all_params(create_state(task, optax.adam(0.1), mesh, 0, False), ema=False)
    means = evaluate_batches(make_eval_step(task, mesh), params, [big, small], mesh, 0, jnp.int32(7))
  both = {name: np.concatenate([big[name], small[name]]) for name in big}
  expected = task.evaluate(params, both, jax.random.key(0), jnp.int32(7))['squares']
  np.testing.assert_allclose(means['squares'], expected, rtol=1e-5)
  assert means['step'] == 7


def test_evaluation_without_batches_is_an_error(linear_task, mesh):
  with pytest.raises(ValueError, match='less than one batch'):
    evaluate_batches(make_eval_step(linear_task(), mesh), {}, [], mesh, 0, jnp.int32(0))


@pytest.mark.parametrize('name', ['loss', 'grad_norm', 'param_norm'])
def test_totals_hold_the_first_non_finite_step(name):
  totals = IntervalTotals()
  assert totals.peek() is None
  for step in range(1, 6):
    metrics = {'loss': 1.0 * step, 'grad_norm': 1.0, 'param_norm': 1.0}
    if step >= 3:
      metrics[name] = np.inf * step if step == 3 else np.nan
    totals.add(jnp.int32(step), {key: jnp.float32(value) for key, value in metrics.items()})
  taken = jax.device_get(totals.take())
  assert (taken['bad_step'], taken['count'], taken['bad_count']) == (3, 2, 3)
  assert taken['bad'][name] == np.inf
  assert totals.peek() is None


def test_totals_sum_finite_steps():
  totals = IntervalTotals()
  for step in range(4):
    totals.add(jnp.int32(step), {name: jnp.float32(step) for name in ('loss', 'grad_norm', 'param_norm')})
  taken = jax.device_get(totals.take())
  assert (taken['bad_step'], taken['sums']['loss']) == (-1, 6)


def test_restored_totals_with_other_metric_names_are_discarded():
  """A checkpoint may come from a run with another `nonfinite` or from an earlier version."""
  totals = IntervalTotals()
  metrics = {name: jnp.float32(2) for name in ('loss', 'grad_norm', 'param_norm')}
  totals.add(jnp.int32(1), metrics)
  saved = totals.state()
  totals.restore(saved)
  totals.add(jnp.int32(2), metrics)
  assert totals.state()['count'] == 2
  totals.restore(saved)
  totals.add(jnp.int32(2), {**metrics, 'skipped_updates': jnp.float32(0)})
  assert totals.state()['count'] == 1 and totals.state()['sums']['skipped_updates'] == 0
