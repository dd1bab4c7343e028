"""A trained dVAE in place of stage 1."""

import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dalle_jax import bundle
from dalle_jax.config import Config
from dalle_jax.config.models import DVAE_SHAPE
from dalle_jax.jobs.train.workspace import Workspace

FLAG = 'config.dvae.pretrained'


def check(config: Config) -> None:
  """Looks at the dVAE in config.dvae.pretrained, if one is named, before anything is made.

  Raises:
    ValueError: there is no such model, or its shape is another than the configuration's.
  """
  if config.dvae.pretrained and not config.models_text:
    path = Path(config.dvae.pretrained)
    bundle.check(path, needs=('dvae',), flag=FLAG)
    _check_shape(config, bundle.read_config(path), path)


def load(config: Config, space: Workspace, mesh: Mesh) -> dict[str, Any]:
  """The parts that are trained already: {'dvae': parameters on the mesh}, or {} if config.dvae.pretrained is empty.

  Raises:
    ValueError: the run began with another.
  """
  if not config.dvae.pretrained or config.models_text:
    return {}
  path = Path(config.dvae.pretrained)
  loaded = bundle.load(path, mesh, needs=('dvae',), flag=FLAG)
  # Not the names or sizes of files, which change when the same model is written again.
  _check_same(space, {'params': loaded.info.get('params', '')})
  return {'dvae': loaded.params['dvae']}


def _check_shape(config: Config, trained: Config, path: Path) -> None:
  lines = [
    f'config.dvae.{name}: {getattr(config.dvae, name)!r} -> {getattr(trained.dvae, name)!r}'
    for name in DVAE_SHAPE
    if getattr(config.dvae, name) != getattr(trained.dvae, name)
  ]
  if lines:
    raise ValueError(
      f'The dVAE in {path} ({FLAG}) has another shape than the configuration; set these keys:\n  ' + '\n  '.join(lines)
    )


def _check_same(space: Workspace, identity: dict[str, Any]) -> None:
  """A run goes on with the dVAE it began with, whose codes its prior has learnt."""
  file = space.path / 'pretrained.json'
  if file.exists() and json.loads(file.read_text()) != identity:
    raise ValueError(
      f'The run in {space.path} began with another dVAE than the one in {FLAG} now; take another --workdir, or put the '
      'former dVAE back.'
    )
  space.write('pretrained.json', identity)
