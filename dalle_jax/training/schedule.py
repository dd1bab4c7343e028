"""Learning-rate schedules: warm-up, then a cosine, a constant or a stepwise halved rate (appendices A.2 and B.2)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dalle_jax.config import TrainingConfig


class PlateauState(NamedTuple):
  """State of `halving_at_plateaus`, which is part of the optimizer state and so of checkpoints."""

  step: jax.Array  # int32: updates done
  halved_after: jax.Array  # int32: updates done before the first one at the current rate; 0: never halved
  readings: optax.contrib.ReduceLROnPlateauState


def make_schedule(config: TrainingConfig) -> optax.Schedule:
  """Make the part of the learning-rate schedule that depends on the step alone.

  The rate rises linearly from 0 during the warm-up. Then it depends on config.schedule:

  - 'cosine' falls to final_learning_rate at schedule_steps, and stays there.
  - 'steps' halves the rate at each of halving_steps.
  - 'constant' keeps the rate.
  - 'plateau' keeps it too; `halving_at_plateaus` applies its halvings, which depend on the loss.
  """
  if config.schedule == 'cosine':
    after = optax.cosine_decay_schedule(
      config.learning_rate,
      # A run shorter than its warm-up never uses this part, but optax requires a positive number.
      decay_steps=max(1, (config.schedule_steps or config.num_steps) - config.warmup_steps),
      alpha=config.final_learning_rate / config.learning_rate,
    )
  else:
    halvings = {step - config.warmup_steps: 0.5 for step in config.halving_steps}
    after = optax.piecewise_constant_schedule(config.learning_rate, halvings)
  if not config.warmup_steps:
    return after
  warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([warmup, after], [config.warmup_steps])


def remarks(config: TrainingConfig, group: str) -> list[str]:
  """What a user may not expect of the schedule: a rate that stays at its end for many steps, or never reaches its peak.

  Args:
    config: the stage's training configuration.
    group: its name, such as 'prior_training', for the sentences.
  """
  sentences = []
  end, steps = config.schedule_steps, config.num_steps
  if config.schedule == 'cosine' and 0 < end < steps:
    rate = config.final_learning_rate
    effect = 'the optimizer changes no parameter' if rate == 0 else f'the learning rate stays at {rate:g}'
    sentences.append(
      f'config.{group}.schedule_steps is {end}, so the learning rate reaches its final value {rate:g} '
      f'{steps - end} steps before the end: from step {end + 1} to step {steps} {effect}. Set schedule_steps to 0 to '
      f'use all of num_steps={steps}, or set final_learning_rate.'
    )
  if config.warmup_steps >= steps:
    sentences.append(
      f'config.{group}.warmup_steps is {config.warmup_steps}, so the learning rate is still rising at the last step '
      f'{steps} and stays below learning_rate={config.learning_rate:g}.'
    )
  late = [step for step in config.halving_steps if step >= steps]
  if late:
    sentences.append(f'config.{group}.halving_steps has {late}, which num_steps={steps} never reaches.')
  return sentences


def halving_at_plateaus(config: TrainingConfig) -> optax.GradientTransformationExtraArgs:
  """Make a transformation that halves updates at every plateau of the training loss, at most max_halvings times.

  Its `update` takes the loss as `value`. After the warm-up, the loss is averaged over windows of plateau_window steps.
  A window improves if its mean is more than plateau_min_improvement below that of the last window that improved. This
  difference is absolute, because the negative log-likelihood of pixels may be negative. After plateau_patience windows
  in a row without improvement, the rate is halved, starting with the update whose loss completes the last window.
  """
  inner = optax.contrib.reduce_on_plateau(
    factor=0.5,
    patience=config.plateau_patience,
    rtol=0.0,
    atol=config.plateau_min_improvement,
    accumulation_size=config.plateau_window,
    min_scale=0.5**config.max_halvings,
  )

  def init(params: Any) -> PlateauState:
    return PlateauState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), inner.init(params))

  def update(
    updates: Any, state: PlateauState, params: Any = None, *, value: jax.Array, **extra: Any
  ) -> tuple[Any, PlateauState]:
    del params, extra
    before = state.readings
    _, after = inner.update({}, before, value=value)
    is_warm = state.step >= config.warmup_steps
    after = jax.tree.map(lambda new, old: jnp.where(is_warm, new, old), after, before)
    halved_after = jnp.where(after.scale < before.scale, state.step, state.halved_after)
    updates = jax.tree.map(lambda leaf: after.scale * leaf, updates)
    return updates, PlateauState(state.step + 1, halved_after, after)

  return optax.GradientTransformationExtraArgs(init, update)


def rate_in_force(config: TrainingConfig, opt_state: Any, step: jax.Array) -> dict[str, jax.Array]:
  """The learning rate of one update, as metrics.

  Args:
    config: the stage's training configuration.
    opt_state: optimizer state after the update.
    step: number of updates before it.

  Returns:
    The scalar 'learning_rate'. With the schedules 'steps' and 'plateau' also 'halved_after', the number of updates
    before the first one at this rate, or 0 if the rate has never been halved.
  """
  rate = jnp.asarray(make_schedule(config)(step), jnp.float32)
  if config.schedule == 'steps':
    steps = jnp.asarray(config.halving_steps)
    return {'learning_rate': rate, 'halved_after': jnp.max(jnp.where(steps <= step, steps, 0))}
  if config.schedule == 'plateau':
    state = opt_state[-1]
    return {'learning_rate': rate * state.readings.scale, 'halved_after': state.halved_after}
  return {'learning_rate': rate}
