"""The optimizer: clipped AdamW (appendix B.2) or Muon, and its schedule; weight decay is chosen by parameter name."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from dalle_jax.config import TrainingConfig

# Rows and columns of the blocks' kernels, by the module that holds them. Counted from the last axis, because scanned
# layers add one in front; an axis in neither holds matrices of their own, as query, key and value.
_LINEAR = MuonDimensionNumbers((-2,), (-1,))
_CONV = MuonDimensionNumbers((-4, -3, -2), (-1,))
_MATRICES = {
  'qkv': MuonDimensionNumbers((-4,), (-2, -1)),
  'out': MuonDimensionNumbers((-3, -2), (-1,)),
  'mlp_in': _LINEAR,
  'mlp_gate': _LINEAR,
  'mlp_out': _LINEAR,
  **{name: _CONV for name in ('conv_1', 'conv_2', 'conv_3', 'conv_4', 'id_path')},
}


def make_schedule(config: TrainingConfig) -> optax.Schedule:
  """The learning rate by step, as far as it is known beforehand: linear warm-up from 0, then what `schedule` says.

  'cosine' falls to final_learning_rate at schedule_steps and stays there; 'steps' is halved at each of halving_steps;
  'constant' stays, and so does 'plateau', whose halvings depend on the loss (see `learning_rate_at`).
  """
  if config.schedule == 'cosine':
    after = optax.cosine_decay_schedule(
      config.learning_rate,
      # A run shorter than its warm-up never gets here, but the schedule must exist.
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


def learning_rate_at(config: TrainingConfig, opt_state: Any, step: jax.Array) -> jax.Array:
  """The learning rate in force at `step`, halvings at plateaus included; float32 scalar."""
  rate = jnp.asarray(make_schedule(config)(step), jnp.float32)
  return rate * opt_state[-1].scale if config.schedule == 'plateau' else rate


def decay_mask(params: Any) -> Any:
  """True for the leaves named 'kernel': matrices decay; embeddings, biases and scales do not.

  By name and not by rank, because scanned layers add an axis to every parameter.
  """
  return jax.tree_util.tree_map_with_path(lambda path, _: _leaf_name(path) == 'kernel', params)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformationExtraArgs:
  """Clipping by the global gradient norm (clip_norm 0: none), then AdamW or Muon on the schedule.

  Its `update` takes the training loss as `value`, which only the schedule 'plateau' reads.
  """
  clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  rule = _muon(config) if config.optimizer == 'muon' else _adamw(config)
  plateau = [_halving_at_plateaus(config)] if config.schedule == 'plateau' else []
  return optax.with_extra_args_support(optax.chain(*clip, rule, *plateau))


def _halving_at_plateaus(config: TrainingConfig) -> optax.GradientTransformationExtraArgs:
  return optax.contrib.reduce_on_plateau(
    factor=0.5,
    patience=config.plateau_patience,
    rtol=config.plateau_tolerance,
    accumulation_size=config.plateau_window,
    min_scale=0.5**config.max_halvings,
  )


def _adamw(config: TrainingConfig) -> optax.GradientTransformation:
  if config.second_moment_clip:
    adam = scale_by_clipped_adam(config.b1, config.b2, config.eps, config.second_moment_clip)
  else:
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
  return optax.chain(
    adam,
    optax.add_decayed_weights(config.weight_decay, decay_mask),
    optax.scale_by_learning_rate(make_schedule(config)),
  )


def scale_by_clipped_adam(b1: float, b2: float, eps: float, clip: float) -> optax.GradientTransformation:
  """Adam whose running variance, its bias corrected, is taken as at most `clip` (appendix B.2: 5).

  The running variance itself is kept as it is, so that a burst of large gradients is forgotten at the usual rate.
  """
  adam = optax.scale_by_adam(b1, b2, eps)

  def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
    _, state = adam.update(grads, state, params)
    mean = optax.tree.bias_correction(state.mu, b1, state.count)
    variance = optax.tree.bias_correction(state.nu, b2, state.count)
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(jnp.minimum(v, clip)) + eps), mean, variance), state

  return optax.GradientTransformation(adam.init, update)


def _muon(config: TrainingConfig) -> optax.GradientTransformation:
  """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for everything else.

  Muon takes the momentum of a matrix's gradient to the nearest orthogonal matrix, so that a step changes all
  directions alike, those with small gradients too. Its learning rate follows the schedule in proportion.
  """
  schedule = make_schedule(config)
  ratio = config.muon_learning_rate / config.learning_rate
  matrices = optax.chain(
    optax.contrib.scale_by_muon(beta=config.b1, weight_dimension_numbers=_matrix_axes),
    optax.stateless(_scale_by_shape),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(lambda step: ratio * schedule(step)),
  )
  return optax.partition({'matrix': matrices, 'other': _adamw(config)}, _labels)


def _axes_of(path: tuple[Any, ...]) -> MuonDimensionNumbers | None:
  """Which axes of a parameter are a matrix's rows and columns; None for what is no matrix of a block."""
  names = _names(path)
  return _MATRICES.get(names[-2]) if names[-1:] == ['kernel'] and len(names) > 1 else None


def _labels(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, _: 'other' if _axes_of(path) is None else 'matrix', params)


def _matrix_axes(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, _: _axes_of(path), params)


def _scale_by_shape(updates: Any, _: Any) -> Any:
  """Wide matrices take longer steps, by sqrt(columns / rows), so that outputs of all widths change alike."""

  def scale(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    rows, columns = (math.prod(leaf.shape[axis] for axis in axes) for axes in _axes_of(path))
    return leaf * max(1.0, columns / rows) ** 0.5

  return jax.tree_util.tree_map_with_path(scale, updates)


def _leaf_name(path: tuple[Any, ...]) -> str:
  return _names(path)[-1]


def _names(path: tuple[Any, ...]) -> list[str]:
  """The dictionary keys of a path: a box of sharding metadata adds an attribute behind them."""
  return [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)] or ['']
