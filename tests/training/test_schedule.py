import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.config import TrainingConfig
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.schedule import PlateauState, halving_at_plateaus, make_schedule, rate_in_force, remarks


def test_cosine_schedule_in_closed_form(make_config):
  config = make_config(num_steps=110, warmup_steps=10, learning_rate=0.4, final_learning_rate=0.1, schedule='cosine')
  schedule = make_schedule(config)
  expected = {0: 0.0, 5: 0.2, 10: 0.4, 35: 0.1 + 0.3 * (1 + np.sqrt(0.5)) / 2, 60: 0.25, 110: 0.1, 500: 0.1}
  for step, value in expected.items():
    np.testing.assert_allclose(schedule(step), value, rtol=1e-5, atol=1e-8)


def test_the_dvae_schedule_of_the_paper(make_config):
  """Appendix A.2: a cosine over the first 1.2 million of 3 million updates, without warm-up."""
  schedule = make_schedule(
    make_config(
      num_steps=3_000_000,
      schedule_steps=1_200_000,
      warmup_steps=0,
      learning_rate=1e-4,
      final_learning_rate=1.25e-6,
      schedule='cosine',
    )
  )
  expected = {0: 1e-4, 600_000: 5.0625e-5, 1_200_000: 1.25e-6, 2_000_000: 1.25e-6, 3_000_000: 1.25e-6}
  np.testing.assert_allclose([schedule(s) for s in expected], list(expected.values()), rtol=1e-5)


def test_schedule_steps_count_from_the_first_step(make_config):
  changes = {'warmup_steps': 10, 'learning_rate': 0.4, 'final_learning_rate': 0.1, 'schedule': 'cosine'}
  until_the_end = make_schedule(make_config(num_steps=110, **changes))
  until_step_110 = make_schedule(make_config(num_steps=1_000, schedule_steps=110, **changes))
  for step in (0, 5, 10, 35, 109, 110, 111, 900):
    assert until_the_end(step) == until_step_110(step)


def test_constant_schedule_with_and_without_warmup(make_config):
  schedule = make_schedule(make_config(warmup_steps=4, learning_rate=0.4))
  np.testing.assert_allclose([schedule(s) for s in (0, 1, 4, 100)], [0, 0.1, 0.4, 0.4], rtol=1e-6)
  assert make_schedule(make_config(warmup_steps=0, learning_rate=0.4))(0) == 0.4


def test_a_run_shorter_than_its_warmup_has_a_schedule(make_config):
  schedule = make_schedule(make_config(num_steps=2, warmup_steps=10, learning_rate=1.0, schedule='cosine'))
  np.testing.assert_allclose([schedule(s) for s in (0, 1, 2)], [0, 0.1, 0.2], rtol=1e-6)


@pytest.mark.parametrize('warmup_steps', [0, 4])
def test_the_rate_is_halved_at_given_steps(make_config, warmup_steps):
  config = make_config(schedule='steps', warmup_steps=warmup_steps, learning_rate=0.8, halving_steps=(4, 7, 9))
  expected = {4: 0.4, 6: 0.4, 7: 0.2, 8: 0.2, 9: 0.1, 10**6: 0.1}
  expected |= {0: 0.0, 3: 0.6} if warmup_steps else {0: 0.8, 3: 0.8}
  halved_after = {0: 0, 3: 0, 4: 4, 6: 4, 7: 7, 8: 7, 9: 9, 10**6: 9}
  for step, rate in expected.items():
    metrics = rate_in_force(config, (), jnp.int32(step))
    np.testing.assert_allclose(metrics['learning_rate'], rate, rtol=1e-6)
    assert metrics['halved_after'] == halved_after[step]


def test_five_halvings_end_at_the_rate_of_the_paper(make_config):
  """Appendix B.2: from 4.5e-4 after 5,000 updates of warm-up to 1.41e-5."""
  steps = (100_000, 200_000, 300_000, 350_000, 400_000)
  schedule = make_schedule(make_config(schedule='steps', warmup_steps=5_000, learning_rate=4.5e-4, halving_steps=steps))
  np.testing.assert_allclose([schedule(s) for s in (2_500, 5_000, 99_999)], [2.25e-4, 4.5e-4, 4.5e-4], rtol=1e-6)
  np.testing.assert_allclose(schedule(430_000), 1.41e-5, rtol=3e-3)


def _expected_halvings(losses, window, patience, min_improvement, max_halvings, warmup):
  """For each step: the factor, and the number of steps before the first one with this factor."""
  scale, best, bad, halved_after, values, result = 1.0, np.inf, 0, 0, [], []
  for step, loss in enumerate(losses):
    if step >= warmup:
      values.append(loss)
    if len(values) == window:
      mean, values = np.mean(values), []
      bad = 0 if mean < best - min_improvement else bad + 1
      best = min(best, mean) if bad == 0 else best
      if bad == patience:
        bad = 0
        if scale > 0.5**max_halvings:
          scale, halved_after = scale / 2, step
    result.append((scale, halved_after))
  return result


@pytest.mark.parametrize('warmup_steps', [0, 5])
@pytest.mark.parametrize('shift', [0, -4])
def test_halving_at_plateaus_matches_a_plain_implementation(make_config, warmup_steps, shift):
  """The loss falls, stays constant, falls again, and then falls by less than the least improvement; also below 0."""
  rng = np.random.default_rng(0)
  trend = np.concatenate([np.linspace(3, 2, 20), np.full(14, 2.0), np.linspace(2, 1, 12), np.linspace(1, 0.99, 40)])
  losses = trend + shift + 0.01 * rng.normal(size=trend.size)
  config = make_config(
    schedule='plateau', warmup_steps=warmup_steps, learning_rate=0.8, plateau_window=2, plateau_patience=3,
    plateau_min_improvement=0.02, max_halvings=3,
  )  # fmt: skip
  tx, schedule = halving_at_plateaus(config), make_schedule(config)
  update = jax.jit(lambda state, value: tx.update({'a': jnp.float32(1)}, state, value=value))
  state, halvings = tx.init({'a': jnp.float32(0)}), []
  for step, loss in enumerate(losses):
    updates, state = update(state, jnp.float32(loss))
    metrics = rate_in_force(config, ('other states', state), jnp.int32(step))
    np.testing.assert_allclose(metrics['learning_rate'], schedule(step) * updates['a'], rtol=1e-6)
    halvings.append((float(updates['a']), int(metrics['halved_after'])))
  assert halvings == _expected_halvings(losses, 2, 3, 0.02, 3, warmup_steps)
  assert halvings[-1][0] == 0.5**3  # max_halvings, although the plateau lasts
  assert len(set(halvings)) == 4


def test_a_constant_loss_during_warmup_is_no_plateau(make_config):
  config = make_config(schedule='plateau', warmup_steps=6, plateau_window=1, plateau_patience=2)
  tx = halving_at_plateaus(config)
  state, factors = tx.init({'a': jnp.float32(0)}), []
  for _ in range(10):
    updates, state = tx.update({'a': jnp.float32(1)}, state, value=jnp.float32(1))
    factors.append(float(updates['a']))
  assert factors == [1.0] * 8 + [0.5] * 2


def test_plateaus_halve_the_updates_of_muon_and_its_adamw(make_config):
  params = {'mlp_in': {'kernel': jnp.eye(3)}, 'tokens': {'embedding': jnp.ones((2, 3))}}
  config = make_config(
    optimizer='muon', schedule='plateau', plateau_window=1, plateau_patience=2, max_halvings=1, clip_norm=4.0
  )
  tx = make_optimizer(config)
  update = jax.jit(lambda state: tx.update(params, state, params, value=jnp.float32(1)))
  state, sizes = tx.init(params), []
  for _ in range(4):
    updates, state = update(state)
    sizes.append([float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(updates)])
  # The gradients are constant, so without halving every update would have the norm of the first.
  np.testing.assert_allclose(np.array(sizes) / sizes[0], [[1, 1], [1, 1], [0.5, 0.5], [0.5, 0.5]], rtol=1e-4)


@pytest.mark.parametrize('changes', [{'schedule': 'constant'}, {'schedule': 'steps', 'halving_steps': (3,)}])
def test_other_schedules_have_no_plateau_state(make_config, changes):
  config = make_config(**changes)
  state = make_optimizer(config).init({'kernel': jnp.ones(2)})
  nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, PlateauState))
  assert not any(isinstance(node, PlateauState) for node in nodes)
  assert ('halved_after' in rate_in_force(config, state, jnp.int32(0))) == (changes['schedule'] == 'steps')


@pytest.mark.parametrize('changes, expected', [
  ({}, []),
  ({'schedule_steps': 100}, []),
  ({'schedule_steps': 150}, []),
  (
    {'schedule_steps': 60},
    [r'prior_training\.schedule_steps is 60, .* 0 40 steps before the end: from step 61 to step 100 the optimizer'],
  ),
  ({'schedule_steps': 60, 'final_learning_rate': 1e-5}, ['stays at 1e-05']),
  ({'schedule': 'constant', 'warmup_steps': 100}, [r'warmup_steps is 100, .* still rising .* below learning']),
  ({'schedule': 'constant', 'warmup_steps': 99}, []),
  ({'schedule': 'steps', 'halving_steps': (50, 100)}, [r'halving_steps has \[100\], which num_steps=100 never']),
])  # fmt: skip
def test_remarks_name_rates_that_a_user_may_not_expect(changes, expected):
  config = TrainingConfig(**({'num_steps': 100, 'warmup_steps': 10, 'learning_rate': 0.1} | changes))
  sentences = remarks(config, 'prior_training')
  assert len(sentences) == len(expected)
  assert all(re.search(pattern, text) for pattern, text in zip(expected, sentences, strict=True)), sentences


def test_steps_after_the_schedule_have_the_rate_that_the_remark_states():
  config = TrainingConfig(num_steps=100, warmup_steps=10, learning_rate=0.1, schedule_steps=60)
  rates = np.array([make_schedule(config)(step) for step in (58, 59, 60, 99)])  # of steps 59, 60, 61 and 100
  assert (rates[:2] > 0).all() and (rates[2:] == 0).all()
