"""Find the kind of a data source from what its path holds."""

import os
from pathlib import Path

from dalle_jax.config import DataConfig
from dalle_jax.data import mixture
from dalle_jax.data.shards import parquet, picture_records, tars
from dalle_jax.files import shown

_TFDS = 'dataset_info.json'


def source_of(config: DataConfig) -> str:
  """The kind of the configured source, a value of config.data.source other than 'auto'.

  Raises:
    ValueError: the path holds nothing that can be read, or several kinds.
  """
  if config.source != 'auto':
    return config.source
  if not config.path:
    return 'captioned_shapes'
  if mixture.is_mixture(config.path):
    return 'mixture'
  root = Path(config.path)
  if '://' in config.path:
    return 'tfds'  # the only kind that is read from elsewhere
  if root.is_file():
    raise ValueError(f'config.data.path: {shown(root)} is a file; give the folder that it is in.')
  if (root / _TFDS).is_file():
    return 'tfds'
  if any((root / name).is_file() for name in (picture_records.MANIFEST, picture_records.PLAN)):
    return 'records'
  kinds = _archives(root)
  if len(kinds) > 1:
    raise ValueError(
      f'config.data.path: {shown(root)} holds tar files and Parquet files. Set config.data.source to one of '
      f'{", ".join(kinds)}.'
    )
  return kinds[0] if kinds else 'folder'


def _archives(root: Path) -> list[str]:
  """The kinds of archives that a folder or its direct subfolders hold."""
  names = set()
  try:
    with os.scandir(root) as entries:
      for entry in entries:
        names.add(entry.name.lower())
        if entry.is_dir(follow_symlinks=False):
          names.update(name.lower() for name in os.listdir(entry.path))
  except OSError:
    return []  # the reader of folders says why it cannot be read
  extensions = {'tars': tars.EXTENSION, 'parquet': parquet.EXTENSION}
  return [kind for kind, extension in extensions.items() if any(name.endswith(extension) for name in names)]
