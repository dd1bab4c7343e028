"""dalle_jax: autoregressive text-to-image models in JAX and Flax."""

from typing import Any

__version__ = '0.1.0'


def load(path: Any, mesh_config: Any = None, verify: bool = True) -> Any:
  """Loads a model directory for generating images; see `dalle_jax.jobs.draw.model.load`."""
  from dalle_jax.jobs.draw.model import load as load_model  # importing this module loads JAX

  return load_model(path, mesh_config, verify)
