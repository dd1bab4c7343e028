"""A pretrained dVAE that replaces the first stage."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dalle_jax import bundle
from dalle_jax.config import Config
from dalle_jax.config.models import DVAE_SHAPE
from dalle_jax.files import read_json_object
from dalle_jax.jobs.train.workspace import Workspace

FLAG = 'config.dvae.pretrained'


def check(config: Config) -> None:
  """Checks the dVAE in config.dvae.pretrained, if any, before the run writes anything.

  Raises:
    ValueError: The model is missing or damaged, or has another shape than the configuration.
  """
  if config.dvae.pretrained and not config.models_text:
    path = Path(config.dvae.pretrained)
    bundle.check(path, needs=('dvae',), flag=FLAG)
    _check_shape(config, bundle.read_config(path), path)


def load(config: Config, space: Workspace, mesh: Mesh) -> dict[str, Any]:
  """Loads the pretrained parts: {'dvae': parameters on the mesh}, or {} if config.dvae.pretrained is empty.

  Raises:
    ValueError: The model is missing or damaged, or an earlier start of the run used another dVAE.
  """
  if not config.dvae.pretrained or config.models_text:
    return {}
  path = Path(config.dvae.pretrained)
  loaded = bundle.load(path, mesh, needs=('dvae',), flag=FLAG)
  # We compare parameters, because the names and sizes of files change when the same model is written again.
  _check_same(space, {'params': loaded.info.get('params', '')})
  return {'dvae': loaded.params['dvae']}


def data_of_parts(config: Config) -> dict[str, str]:
  """The fingerprint of the data that the pretrained dVAE was trained on: {'dvae': fingerprint}, or {} if unknown."""
  if not config.dvae.pretrained or config.models_text:
    return {}
  info = bundle.check(Path(config.dvae.pretrained), needs=('dvae',), flag=FLAG)
  fingerprint = info.get('part_data', {}).get('dvae', info.get('data'))
  return {'dvae': fingerprint} if fingerprint else {}


def _check_shape(config: Config, trained: Config, path: Path) -> None:
  """Raises ValueError if the dVAE in `path`, with the configuration `trained`, has another shape than `config`."""
  lines = [
    f'config.dvae.{name}: {getattr(config.dvae, name)!r} -> {getattr(trained.dvae, name)!r}'
    for name in DVAE_SHAPE
    if getattr(config.dvae, name) != getattr(trained.dvae, name)
  ]
  if lines:
    raise ValueError(
      f'The dVAE in {path} ({FLAG}) has another shape than the configuration; change these keys (old -> new):\n  '
      + '\n  '.join(lines)
    )


def _check_same(space: Workspace, identity: dict[str, Any]) -> None:
  """Raises ValueError if the run began with another dVAE, whose codes its prior models, or its record is damaged."""
  file = space.path / 'pretrained.json'
  advice = f'Remove this file if {FLAG} is the dVAE that the run began with.'
  if file.exists() and read_json_object(file, advice) != identity:
    raise ValueError(
      f'The run in {space.path} began with another dVAE than the one in {FLAG} now. Set another --workdir, or set '
      f'{FLAG} to the earlier dVAE.'
    )
  space.write('pretrained.json', identity)
