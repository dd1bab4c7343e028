"""The program of a training step with the shapes of its arguments, ready to compile; nothing is computed."""

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
  """A jitted function and the shapes of its arguments.

  Attributes:
    name: what the program does, such as 'training step of prior'.
    jitted: a function from `jax.jit`.
    arguments: its arguments, as `jax.ShapeDtypeStruct`s with shardings.
    kinds: trees of arrays that are on the devices while the program runs, by kind of memory.
    passes: trip count of loops whose length is an argument.
  """

  name: str
  jitted: Any
  arguments: tuple[Any, ...]
  kinds: dict[str, Any]
  passes: int = 1


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of one call of a program, over all devices.

  Attributes:
    examples: images or text sequences.
    tokens: positions of all examples.
    num_params: parameters that the program trains or draws with.
    model_flops: FLOPs of the matrix products, without those that rematerialisation repeats.
  """

  examples: int
  tokens: int
  num_params: int
  model_flops: float


def stage_of(config: Config, stage: str | None) -> str:
  """The stage to examine: the requested one, or the last stage that the configuration trains.

  Raises:
    ValueError: the configuration does not train the requested stage, or its model is not trained by gradients.
  """
  stages = stages_of(config)
  if stage and stage not in stages:
    raise ValueError(f'--stage={stage}: config.task={config.task} trains {", ".join(stages)}; give one of these.')
  if 'sequence' in stages and config.model.kind == 'ngram':
    raise ValueError(
      'config.model.kind is ngram. Such a model is counted, not trained, so there is no step to compile; set another '
      'kind.'
    )
  return stage or stages[-1]


def training_work(config: Config, stage: str) -> Work:
  """The work of one optimizer step of a stage."""
  batch_size = training_of(config, stage).batch_size
  task = make_task(config, stage)
  model_flops = flops.step_flops(task, batch_shapes(config, stage, batch_size))
  num_params, _ = flops.count_params(task)
  return Work(batch_size, batch_size * tokens_per_example(config, stage), num_params, model_flops)


def training_program(config: Config, stage: str, mesh: Mesh) -> Program:
  """The optimizer step of a stage, exactly as the training loop runs it."""
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
  """Bytes of an array. For PRNG keys, the bytes of the key data."""
  return math.prod(leaf.shape) * _itemsize(leaf.dtype)


def shard_bytes(leaf: Any) -> int:
  """Bytes of one device's shard of an array, or of the full array if it has no sharding."""
  leaf_sharding = getattr(leaf, 'sharding', None)
  shape = leaf_sharding.shard_shape(leaf.shape) if leaf_sharding is not None else leaf.shape
  return math.prod(shape) * _itemsize(leaf.dtype)


def _itemsize(dtype: Any) -> int:
  return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
