"""What `stages.STAGES` names for a stage: its task, its training configuration and the shapes of its batches."""

import importlib
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh

from dalle_jax import stages
from dalle_jax.config import Config, TrainingConfig
from dalle_jax.sharding import batch_sharding
from dalle_jax.training.tasks import Task

NUM_BYTES = 256


def task_module(stage: str) -> ModuleType:
  """The module of a stage's task; see `dalle_jax/training/tasks/__init__.py`."""
  return importlib.import_module(stages.find(stage).module)


def stages_of(config: Config) -> list[str]:
  """The names of the stages that the configuration trains, in their order."""
  return [stage.name for stage in config.trained_stages]


def training_of(config: Config, stage: str) -> TrainingConfig:
  """The configuration of a stage's training."""
  return getattr(config, stages.find(stage).training_group)


def make_task(config: Config, stage: str, text_vocab_size: int | None = None) -> Task:
  """The task of a stage.

  Args:
    config: The experiment's configuration.
    stage: The stage's name, one of `stages_of`.
    text_vocab_size: The number of the tokenizer's ids. None, before the tokenizer is trained, means the most that the
      configuration allows.
  """
  most = NUM_BYTES if config.tokenizer.kind == 'bytes' else config.tokenizer.vocab_size
  has_text = config.models_text or config.reads_captions
  return task_module(stage).make_task(config, (text_vocab_size or most) if has_text else 0)


def batch_shapes(config: Config, stage: str, batch_size: int, mesh: Mesh | None = None) -> dict[str, Any]:
  """The shapes of a stage's batch.

  Args:
    config: The experiment's configuration.
    stage: The stage's name.
    batch_size: The number of examples.
    mesh: The devices over which the batch is split; None for shapes without shardings.
  """
  where = batch_sharding(mesh) if mesh else None
  fields = task_module(stage).batch_fields(config)
  return {
    name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=where) for name, (shape, dtype) in fields.items()
  }


def tokens_per_example(config: Config, stage: str) -> int:
  """Positions of one example on which the model of a stage spends compute."""
  return task_module(stage).tokens_per_example(config)
