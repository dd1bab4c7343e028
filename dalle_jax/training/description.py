"""The description stored in each checkpoint: the configuration, code versions, devices and data of its run."""

import json
from typing import Any

import jax
from jax.sharding import Mesh

from dalle_jax import hosts
from dalle_jax.config import Config, difference


def describe(config: Config, mesh: Mesh, data_fingerprint: str) -> dict[str, Any]:
  """Describe a run in the types that JSON returns.

  Args:
    config: the experiment's configuration.
    mesh: the device mesh.
    data_fingerprint: identifies the training data.
  """
  return {
    'config': json.loads(json.dumps(config.to_dict())),  # JSON turns tuples into lists
    'versions': hosts.versions(),
    'mesh': dict(mesh.shape),
    'hosts': jax.process_count(),
    'device': mesh.devices.flat[0].device_kind,
    'data': data_fingerprint,
  }


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
  """List the differences in configuration and versions between two descriptions; '' if there are none.

  The result starts with a space, so that it can follow another sentence.
  """
  if not old:  # checkpoints of format 1 have no description
    return ''
  lines = difference(old.get('config', {}), new.get('config', {}))
  lines += difference(old.get('versions', {}), new.get('versions', {}), 'version')
  return ' It was written with other settings: ' + '; '.join(lines) + '.' if lines else ''
