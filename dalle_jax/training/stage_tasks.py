"""From a configuration and the name of a stage to what it trains, and to the shapes of its batches."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dalle_jax.config import Config, TrainingConfig
from dalle_jax.sharding import batch_sharding
from dalle_jax.training.tasks import Task
from dalle_jax.training.tasks.dvae import DvaeTask
from dalle_jax.training.tasks.joint import JointTask
from dalle_jax.training.tasks.prior import PriorTask
from dalle_jax.training.tasks.reranker import RerankerTask
from dalle_jax.training.tasks.sequence import make_sequence_task

NUM_BYTES = 256
_OF_TEXT = {'prior': PriorTask, 'joint': JointTask, 'reranker': RerankerTask, 'sequence': make_sequence_task}


def stages_of(config: Config) -> list[str]:
  """The stages that the task trains, in their order."""
  return [group.removesuffix('_training') for group in config.training_groups]


def training_of(config: Config, stage: str) -> TrainingConfig:
  return getattr(config, f'{stage}_training')


def make_task(config: Config, stage: str, text_vocab_size: int | None = None) -> Task:
  """The task of a stage.

  Args:
    config: of the experiment.
    stage: one of `stages_of`.
    text_vocab_size: ids of the tokenizer; None where it is not known: at most so many as the configuration asks for.
  """
  if stage == 'dvae':
    return DvaeTask(config.dvae, config.data.image_size)
  expected = NUM_BYTES if config.tokenizer.kind == 'bytes' else config.tokenizer.vocab_size
  has_text = config.models_text or config.reads_captions
  return _OF_TEXT[stage](config, (text_vocab_size or expected) * has_text)


def batch_shapes(config: Config, stage: str, batch_size: int, mesh: Mesh | None = None) -> dict[str, Any]:
  """The shapes of a batch, split over a mesh where one is given."""
  where = batch_sharding(mesh) if mesh else None

  def rows(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=where)

  if config.models_text:
    return {'tokens': rows(jnp.int32, config.sequence_length)}
  size = config.data.image_size
  batch = {'image': rows(jnp.uint8, size, size, 3)}
  if stage != 'dvae' and config.reads_captions:
    batch['text'] = rows(jnp.int32, config.tokenizer.text_length - 1)
  if stage == 'reranker' and config.reranker.wrong_captions:
    batch['wrong'] = rows(jnp.int32, config.tokenizer.text_length - 1)
  return batch


def tokens_per_example(config: Config, stage: str) -> int:
  """Positions of one example on which the model of a stage spends compute."""
  if stage == 'sequence':
    return config.sequence_length
  if stage == 'dvae':
    return config.image_length
  if stage == 'reranker':
    return (config.data.image_size // config.reranker.patch_size) ** 2 + config.tokenizer.text_length
  return config.image_length + config.tokenizer.text_length
