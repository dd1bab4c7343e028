"""The optimizer: AdamW (appendix B.2) or Muon, with gradient clipping and weight decay by parameter name."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from dalle_jax.config import TrainingConfig
from dalle_jax.training.schedule import halving_at_plateaus, make_schedule

# Row and column axes of the kernels in blocks, by the name of their module. Axes are counted from the end, because
# scanned layers add an axis in front. An axis that is neither row nor column, such as the query/key/value axis of
# 'qkv', indexes separate matrices.
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


def decay_mask(params: Any) -> Any:
  """True for leaves named 'kernel' or '..._kernel': matrices decay; embeddings, biases and scales do not.

  Names decide, not ranks, because scanned layers add an axis to every parameter. The paper states no
  exclusions. We use those of minGPT, where output matrices decay too.
  """

  def decays(path: tuple[Any, ...], _: Any) -> bool:
    return _names(path)[-1] == 'kernel' or _names(path)[-1].endswith('_kernel')

  return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformationExtraArgs:
  """Make the optimizer: clip the global gradient norm (not if clip_norm is 0), then apply AdamW or Muon.

  Its `update` takes the training loss as `value`. Only the schedule 'plateau' uses it.
  """
  clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  rule = _muon(config) if config.optimizer == 'muon' else _adamw(config)
  plateau = [halving_at_plateaus(config)] if config.schedule == 'plateau' else []
  return optax.with_extra_args_support(optax.chain(*clip, rule, *plateau))


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
  """Adam whose running variance is clipped by value "before it is used to update the parameters or moments" (B.2).

  We read this as clipping the stored variance, before its bias correction. So a huge gradient is forgotten within a few
  steps.
  """
  adam = optax.scale_by_adam(b1, b2, eps)

  def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
    _, state = adam.update(grads, state, params)
    state = state._replace(nu=jax.tree.map(lambda leaf: jnp.minimum(leaf, clip), state.nu))
    mean = optax.tree.bias_correction(state.mu, b1, state.count)
    variance = optax.tree.bias_correction(state.nu, b2, state.count)
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, variance), state

  return optax.GradientTransformation(adam.init, update)


def _muon(config: TrainingConfig) -> optax.GradientTransformation:
  """Muon (Jordan et al. 2024) for the matrices in blocks, AdamW for all other parameters.

  Muon replaces the momentum of a matrix by the nearest orthogonal matrix. So a step moves equally far in all
  directions, including those with small gradients. Its learning rate is proportional to the schedule's.
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
  """Row and column axes of a parameter, or None if it is not a matrix in a block."""
  names = _names(path)
  return _MATRICES.get(names[-2]) if names[-1:] == ['kernel'] and len(names) > 1 else None


def _labels(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, _: 'other' if _axes_of(path) is None else 'matrix', params)


def _matrix_axes(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, _: _axes_of(path), params)


def _scale_by_shape(updates: Any, _: Any) -> Any:
  """Scale the steps of wide matrices by sqrt(columns / rows), so that outputs of all widths change equally fast."""

  def scale(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    matrix_axes = _axes_of(path)
    assert matrix_axes is not None, path  # `_labels` sends only matrices here
    rows, columns = (math.prod(leaf.shape[axis] for axis in axes) for axes in matrix_axes)
    return leaf * max(1.0, columns / rows) ** 0.5

  return jax.tree_util.tree_map_with_path(scale, updates)


def _names(path: tuple[Any, ...]) -> list[str]:
  """The dictionary keys of a path, without the attribute that a box of sharding metadata adds at the end."""
  return [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)] or ['']
