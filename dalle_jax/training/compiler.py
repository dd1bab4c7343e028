"""The options with which training steps are compiled, as far as the installed compiler knows them.

Names of options come and go with versions of XLA, and one that is not known makes it refuse the whole program.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from dalle_jax import hardware
from dalle_jax.sharding import replicated


def options_of_steps(mesh: Mesh, fusion_mib: int) -> dict[str, str]:
  """Those of `hardware.compiler_options` for the mesh's devices that their compiler knows."""
  return known(hardware.compiler_options(mesh.devices.flat[0].device_kind, fusion_mib), mesh)


def lower(jitted: Any, mesh: Mesh, *arguments: Any) -> Any:
  """A jitted function lowered for the mesh's devices, which may be another platform's than this process's."""
  platform = mesh.devices.flat[0].platform
  return jitted.trace(*arguments).lower(lowering_platforms=('cuda' if platform == 'gpu' else platform,))


def known(options: dict[str, str], mesh: Mesh) -> dict[str, str]:
  """The options without those that the compiler of the mesh's devices does not know, each told in the log.

  All hosts of the mesh must call it with the same options, as they compile a program for all devices.
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
        'The compiler of %s does not know the option %s; steps are compiled without it.',
        mesh.devices.flat[0].device_kind, unknown.group(1),
      )  # fmt: skip
      del options[unknown.group(1)]
  return options
