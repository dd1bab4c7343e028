"""What a checkpoint says of itself, besides the state: what was trained, by which code, on what."""

import json
from typing import Any

import jax
from jax.sharding import Mesh

from dalle_jax import hosts
from dalle_jax.config import Config, difference


def describe(config: Config, mesh: Mesh, data_fingerprint: str) -> dict[str, Any]:
  """Facts as JSON gives them back: configuration, versions, the mesh and its devices, the name of the training data."""
  return {
    'config': json.loads(json.dumps(config.to_dict())),  # tuples are lists in a checkpoint
    'versions': hosts.versions(),
    'mesh': dict(mesh.shape),
    'hosts': jax.process_count(),
    'device': mesh.devices.flat[0].device_kind,
    'data': data_fingerprint,
  }


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
  """A sentence on what differs in configuration and versions between two descriptions; '' where nothing does."""
  if not old:  # the first format has none
    return ''
  lines = difference(old.get('config', {}), new.get('config', {}))
  lines += difference(old.get('versions', {}), new.get('versions', {}), 'version')
  return ' It was written with other settings: ' + '; '.join(lines) + '.' if lines else ''
