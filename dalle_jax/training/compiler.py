"""Compiler options for training steps, limited to those that the installed compiler supports.

Option names come and go with XLA versions, and one unknown option makes XLA refuse the whole program.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from dalle_jax import hardware
from dalle_jax.sharding import replicated


def step_options(mesh: Mesh, fusion_mib: int) -> dict[str, str]:
  """The options in `hardware.compiler_options` that the compiler of the mesh's devices supports."""
  return supported(hardware.compiler_options(mesh.devices.flat[0].device_kind, fusion_mib), mesh)


def lower(jitted: Any, mesh: Mesh, *arguments: Any) -> Any:
  """Lower a jitted function for the mesh's devices, whose platform may differ from this process's."""
  platform = mesh.devices.flat[0].platform
  return jitted.trace(*arguments).lower(lowering_platforms=('cuda' if platform == 'gpu' else platform,))


def supported(options: dict[str, str], mesh: Mesh) -> dict[str, str]:
  """Drop the options that the compiler of the mesh's devices does not know, with a warning for each.

  All hosts of the mesh must call this with the same options, because the check compiles for all devices of the mesh.
  """
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
  options = dict(options)
  while options:
    try:
      lower(jax.jit(jnp.negative, compiler_options=options), mesh, scalar).compile()
      break
    except jax.errors.JaxRuntimeError as error:
      unknown = re.search(r"No such compile option: '(\w+)'", str(error))
      if not unknown or unknown.group(1) not in options:
        raise
      logging.warning(
        'The compiler for %s does not know the option %s; training steps are compiled without it.',
        mesh.devices.flat[0].device_kind, unknown.group(1),
      )  # fmt: skip
      del options[unknown.group(1)]
  return options
