"""The optimizer: clipped AdamW whose weight decay is chosen by parameter name (appendix B.2)."""

from typing import Any

import jax
import optax

from dalle_jax.config import TrainingConfig


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
  """Clipping by the global gradient norm (clip_norm 0: none), then AdamW on the schedule."""
  adamw = optax.adamw(
    make_schedule(config),
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    weight_decay=config.weight_decay,
    mask=decay_mask,
  )
  if not config.clip_norm:
    return adamw
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def _leaf_name(path: tuple[Any, ...]) -> str:
  """The last dictionary key of a path: a box of sharding metadata adds an attribute behind it."""
  names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
  return names[-1] if names else ''
