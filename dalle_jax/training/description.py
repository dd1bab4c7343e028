"""What a checkpoint says of itself, besides the state: what was trained, by which code, on what."""

import importlib.metadata
import platform
from typing import Any

import jax
from jax.sharding import Mesh

import dalle_jax
from dalle_jax.config import Config, difference

PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def describe(config: Config, mesh: Mesh, data_fingerprint: str) -> dict[str, Any]:
  """Facts for JSON: the configuration, versions, the mesh and its devices, and the name of the training data."""
  versions = {'dalle_jax': dalle_jax.__version__, 'python': platform.python_version()}
  versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
  return {
    'config': config.to_dict(),
    'versions': versions,
    'mesh': dict(mesh.shape),
    'hosts': jax.process_count(),
    'device': mesh.devices.flat[0].device_kind,
    'data': data_fingerprint,
  }


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
  """A sentence on what differs in configuration and versions between two descriptions; '' where nothing does."""
  lines = difference(old.get('config', {}), new.get('config', {}))
  lines += difference(old.get('versions', {}), new.get('versions', {}), 'version')
  return ' It was written with other settings: ' + '; '.join(lines) + '.' if lines else ''
