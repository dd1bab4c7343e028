"""The programs that draw images, over shapes alone: reading the captions, the loop over tokens, and the decoder."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.factory import make_dvae, make_stream_model
from dalle_jax.planning.programs import Program, Work
from dalle_jax.sampling.memory import fitting_batch
from dalle_jax.sampling.sampler import jitted_programs, loop_arguments
from dalle_jax.training import flops
from dalle_jax.training.tasks.codes import init_dvae


def check(config: Config) -> None:
  """Refuses what draws no images.

  Raises:
    ValueError: says which key is the cause.
  """
  if config.models_text or config.task in ('dvae', 'reranker'):
    raise ValueError(
      f'--task=sample draws images, which config.task={config.task} (config.model.tokens={config.model.tokens}) does '
      'not; take a configuration of a prior.'
    )


def batch_size(config: Config, mesh: Mesh) -> int:
  """Images drawn at a time: config.sampling.batch_size, rounded up to what the devices divide."""
  return fitting_batch(config.sampling.batch_size, 1, None, mesh)


def work(config: Config, images: int) -> Work:
  """What drawing a batch of images does: every position once, and the decoder of the dVAE."""
  model, part = make_stream_model(config, config.tokenizer.vocab_size)
  shapes = jax.eval_shape(lambda: nn.unbox(_init(config)))
  tokens = jax.ShapeDtypeStruct((images, model.length), jnp.int32)
  codes = jax.ShapeDtypeStruct((images, model.grid_size, model.grid_size), jnp.int32)

  def draw(params: Any, tokens: jax.Array, codes: jax.Array) -> Any:
    dvae = make_dvae(config.dvae)
    return model.logits(params[part], tokens), dvae.apply({'params': params['dvae']}, codes, method='decode')

  count = flops.matmul_flops(jax.make_jaxpr(draw)(shapes, tokens, codes).jaxpr)
  rows = 2 if config.sampling.guidance_scale != 1 else 1
  num_params = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  return Work(images, images * model.length, num_params, rows * count)


def _init(config: Config) -> dict[str, Any]:
  model, part = make_stream_model(config, config.tokenizer.vocab_size)
  return {part: model.init(jax.random.key(0)), 'dvae': init_dvae(config, jax.random.key(0))}


def programs(config: Config, mesh: Mesh, compiled: Any) -> list[Program]:
  """The programs of one batch of images, in the order in which they run.

  Args:
    config: of the experiment.
    mesh: of devices, which need not be there.
    compiled: from a `Program` to its `jax.stages.Compiled`: what one returns, split as its compiler chose, is what
      the next one takes.
  """
  model, part = make_stream_model(config, config.tokenizer.vocab_size)
  jitted = jitted_programs(model, make_dvae(config.dvae), mesh, config.sampling.top_k)
  boxes = jax.eval_shape(lambda: _init(config))
  shardings = sharding.param_shardings(boxes, mesh)
  params = jax.tree.map(_placed, nn.unbox(boxes), shardings)
  rows, count = sharding.batch_sharding(mesh), batch_size(config, mesh)
  text = jax.ShapeDtypeStruct((count, max(model.text_length - 1, 0)), jnp.int32, sharding=rows)
  index = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=rows)
  unconditional = text if config.sampling.guidance_scale != 1 else None
  loop_inputs = loop_arguments(config.sampling, model, np.int32(0), index)

  def one(name: str, function: Any, *arguments: Any, passes: int = 1, **kinds: Any) -> tuple[Program, Any]:
    program = Program(name, function, arguments, kinds, passes)
    return program, _results(function, arguments, compiled(program))

  prepare, prepared = one('preparing parameters', jitted.prepare, params[part], parameters=params)
  begin, state = one(
    'reading captions', jitted.begin, prepared, text, unconditional, None, parameters=params, prepared=prepared
  )
  loop, state = one(
    'drawing tokens', jitted.advance, prepared, state, np.int32(model.length - 1), *loop_inputs,
    passes=model.image_length - 1, parameters=params, prepared=prepared, caches=state,
  )  # fmt: skip
  tokens = jax.ShapeDtypeStruct((count, model.length), jnp.int32, sharding=rows)
  paint, _ = one('painting', jitted.paint, params['dvae'], tokens, parameters=params, prepared=prepared)
  return [prepare, begin, loop, paint]


def _placed(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _results(function: Any, arguments: tuple[Any, ...], compiled: Any) -> Any:
  """The shapes of what a compiled program returns, and how they are split."""
  return jax.tree.map(_placed, jax.eval_shape(function, *arguments), compiled.output_shardings)
