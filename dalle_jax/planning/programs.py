"""The programs that training and drawing run, over shapes alone: what is compiled to see whether it fits."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.training import flops
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.stage_tasks import batch_shapes, make_task, stages_of, tokens_per_example, training_of
from dalle_jax.training.state import abstract_state
from dalle_jax.training.step import make_train_step


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
  stages = stages_of(config)
  if stage and stage not in stages:
    raise ValueError(f'--stage={stage}: config.task={config.task} trains {", ".join(stages)}.')
  if 'sequence' in stages and config.model.kind == 'ngram':
    raise ValueError('config.model.kind is ngram, which is counted, not trained: there is no step to compile.')
  return stage or stages[-1]


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


def leaf_bytes(leaf: Any) -> int:
  """Bytes of an array; of keys, of what they hold."""
  return math.prod(leaf.shape) * _itemsize(leaf.dtype)


def shard_bytes(leaf: Any) -> int:
  """Bytes of a device's part of an array; of one that does not say how it is split, of all of it."""
  where = getattr(leaf, 'sharding', None)
  return math.prod(where.shard_shape(leaf.shape) if where is not None else leaf.shape) * _itemsize(leaf.dtype)


def _itemsize(dtype: Any) -> int:
  return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
