"""The programs that draw images: prefill of the captions, the loop over tokens, and the dVAE's decoder.

All functions here work on shapes; nothing is computed.
"""

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
  """Check that a configuration draws images.

  Raises:
    ValueError: it does not; the message names the keys that decide this.
  """
  if config.models_text or config.task in ('dvae', 'reranker'):
    raise ValueError(
      f'config.task is {config.task} and config.model.tokens is {config.model.tokens}: this configuration draws no '
      'images. --task=sample needs one with a prior or a model of image tokens, such as --config=configs/dalle.py:12b.'
    )


def batch_size(config: Config, mesh: Mesh) -> int:
  """Images per batch: config.sampling.batch_size, rounded up to a multiple that the mesh can split."""
  return fitting_batch(config.sampling.batch_size, 1, None, mesh)


def work(config: Config, images: int) -> Work:
  """The work of drawing a batch of images: the model at every position once, and the dVAE's decoder.

  Guidance doubles the model FLOPs.
  """
  model, part_name = make_stream_model(config, config.tokenizer.vocab_size)
  shapes = jax.eval_shape(lambda: nn.unbox(_init(config)))
  tokens = jax.ShapeDtypeStruct((images, model.length), jnp.int32)
  codes = jax.ShapeDtypeStruct((images, model.grid_size, model.grid_size), jnp.int32)

  def draw(params: Any, tokens: jax.Array, codes: jax.Array) -> Any:
    dvae = make_dvae(config.dvae)
    return model.logits(params[part_name], tokens), dvae.apply({'params': params['dvae']}, codes, method='decode')

  count = flops.matmul_flops(jax.make_jaxpr(draw)(shapes, tokens, codes).jaxpr)
  rows = 2 if config.sampling.guidance_scale != 1 else 1
  num_params = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  return Work(images, images * model.length, num_params, rows * count)


def _init(config: Config) -> dict[str, Any]:
  model, part_name = make_stream_model(config, config.tokenizer.vocab_size)
  return {part_name: model.init(jax.random.key(0)), 'dvae': init_dvae(config, jax.random.key(0))}


def programs(config: Config, mesh: Mesh, compiled: Any) -> list[Program]:
  """The programs that draw one batch of images, in the order in which they run.

  Args:
    config: the experiment's configuration.
    mesh: its devices may be compile-only devices.
    compiled: compiles a `Program` and returns its `jax.stages.Compiled`. The compiler chooses the shardings of a
      program's results. The next program takes the results, with these shardings, as its arguments.
  """
  model, part_name = make_stream_model(config, config.tokenizer.vocab_size)
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

  prepare, prepared = one('preparing parameters', jitted.prepare, params[part_name], parameters=params)
  begin, state = one(
    'reading captions', jitted.begin, prepared, text, unconditional, None, parameters=params, prepared=prepared
  )
  loop, state = one(
    'drawing tokens', jitted.advance, prepared, state, np.int32(model.length - 1), *loop_inputs,
    passes=model.image_length - 1, parameters=params, prepared=prepared, caches=state,
  )  # fmt: skip
  tokens = jax.ShapeDtypeStruct((count, model.length), jnp.int32, sharding=rows)
  paint, _ = one('decoding images', jitted.paint, params['dvae'], tokens, parameters=params, prepared=prepared)
  return [prepare, begin, loop, paint]


def _placed(leaf: Any, leaf_sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding)


def _results(function: Any, arguments: tuple[Any, ...], compiled: Any) -> Any:
  """The shapes and shardings of a compiled program's results."""
  return jax.tree.map(_placed, jax.eval_shape(function, *arguments), compiled.output_shardings)
