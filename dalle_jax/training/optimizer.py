"""The optimizer: clipped AdamW (appendix B.2) or Muon, whose weight decay is chosen by parameter name."""

import math
from typing import Any

import jax
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
  """The learning rate by step: linear warm-up from 0, then a cosine down to the end of training, or a constant."""
  if config.schedule == 'constant':
    after = optax.constant_schedule(config.learning_rate)
  else:
    after = optax.cosine_decay_schedule(
      config.learning_rate,
      # A run shorter than its warm-up never gets here, but the schedule must exist.
      decay_steps=max(1, config.num_steps - config.warmup_steps),
      alpha=config.final_learning_rate / config.learning_rate,
    )
  if not config.warmup_steps:
    return after
  warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([warmup, after], [config.warmup_steps])


def decay_mask(params: Any) -> Any:
  """True for the leaves named 'kernel': matrices decay; embeddings, biases and scales do not.

  By name and not by rank, because scanned layers add an axis to every parameter.
  """
  return jax.tree_util.tree_map_with_path(lambda path, _: _leaf_name(path) == 'kernel', params)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
  """Clipping by the global gradient norm (clip_norm 0: none), then AdamW or Muon on the schedule."""
  rule = _muon(config) if config.optimizer == 'muon' else _adamw(config)
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule) if config.clip_norm else rule


def _adamw(config: TrainingConfig) -> optax.GradientTransformation:
  return optax.adamw(
    make_schedule(config),
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    weight_decay=config.weight_decay,
    mask=decay_mask,
  )


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
