"""The programs that training and drawing run, over shapes alone: what is compiled to see whether it fits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.config import Config, TrainingConfig
from dalle_jax.training import flops
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import abstract_state
from dalle_jax.training.step import make_train_step
from dalle_jax.training.tasks import Task
from dalle_jax.training.tasks.dvae import DvaeTask
from dalle_jax.training.tasks.joint import JointTask
from dalle_jax.training.tasks.prior import PriorTask
from dalle_jax.training.tasks.reranker import RerankerTask
from dalle_jax.training.tasks.sequence import make_sequence_task

STAGES = ('dvae', 'prior', 'joint', 'sequence', 'reranker')


@dataclasses.dataclass(frozen=True)
class Program:
  """A program and the shapes of what it is called with.

  Attributes:
    name: what it does.
    jitted: a function from `jax.jit`.
    arguments: its arguments, as shapes that know how they are split.
    kinds: names of kinds of memory, with the part of the arguments that is of each.
    passes: how often loops run whose length is an argument.
  """

  name: str
  jitted: Any
  arguments: tuple[Any, ...]
  kinds: dict[str, Any]
  passes: int = 1


@dataclasses.dataclass(frozen=True)
class Work:
  """What a program does in one call.

  Attributes:
    examples: images, or sequences of text.
    tokens: positions of them, over all devices.
    num_params: parameters that are trained, or drawn with.
    model_flops: of its matrix products, without what rematerialisation computes again.
  """

  examples: int
  tokens: int
  num_params: int
  model_flops: float


def stage_of(config: Config, stage: str | None) -> str:
  """The stage to look at: the one asked for, or the last that the configuration trains.

  Raises:
    ValueError: it does not train that one, or nothing is trained by gradients.
  """
  stages = [group.removesuffix('_training') for group in config.training_groups]
  if stage and stage not in stages:
    raise ValueError(f'--stage={stage}: config.task={config.task} trains {", ".join(stages)}.')
  if 'sequence' in stages and config.model.kind == 'ngram':
    raise ValueError('config.model.kind is ngram, which is counted, not trained: there is no step to compile.')
  return stage or stages[-1]


def training_of(config: Config, stage: str) -> TrainingConfig:
  return getattr(config, f'{stage}_training')


def make_task(config: Config, stage: str) -> Task:
  """The task of a stage, with as many text ids as config.tokenizer.vocab_size says: at most that many there will be."""
  if stage == 'dvae':
    return DvaeTask(config.dvae, config.data.image_size)
  has_text = config.models_text or config.reads_captions
  vocab_size = config.tokenizer.vocab_size * has_text
  if config.tokenizer.kind == 'bytes':
    vocab_size = 257  # every byte, and the pad
  kinds = {'prior': PriorTask, 'joint': JointTask, 'reranker': RerankerTask, 'sequence': make_sequence_task}
  return kinds[stage](config, vocab_size)


def batch_shapes(config: Config, stage: str, batch_size: int, mesh: Mesh | None = None) -> dict[str, Any]:
  """The shapes of a batch, split over a mesh where one is given."""
  where = sharding.batch_sharding(mesh) if mesh else None

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
  """Positions of an example that the model of a stage computes."""
  if stage == 'sequence':
    return config.sequence_length
  if stage == 'dvae':
    return config.image_length
  if stage == 'reranker':
    return (config.data.image_size // config.reranker.patch_size) ** 2 + config.tokenizer.text_length
  return config.image_length + config.tokenizer.text_length


def training_work(config: Config, stage: str) -> Work:
  """What one optimizer step does."""
  batch_size = training_of(config, stage).batch_size
  task = make_task(config, stage)
  model_flops = flops.step_flops(task, batch_shapes(config, stage, batch_size))
  num_params, _ = flops.count_params(task)
  return Work(batch_size, batch_size * tokens_per_example(config, stage), num_params, model_flops)


def training_program(config: Config, stage: str, mesh: Mesh) -> Program:
  """The optimizer step of a stage, as the loop runs it."""
  training, task = training_of(config, stage), make_task(config, stage)
  with sharding.use_mesh(mesh):
    tx = make_optimizer(training)
    state = abstract_state(task, tx, mesh, use_ema=training.ema_decay > 0)
    step = make_train_step(task, tx, training, mesh, config.seed)
  batch = batch_shapes(config, stage, training.batch_size, mesh)
  kinds = {
    'parameters': state.params, 'optimizer': state.opt_state, 'averages': state.ema,
    'frozen': state.frozen, 'batch': batch,
  }  # fmt: skip
  return Program(f'training step of {stage}', step, (state, batch), kinds)
