"""The kinds of sources of pictures: what lists the pictures of each, and what reads them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging

from dalle_jax.config import DataConfig
from dalle_jax.data import readers
from dalle_jax.data.account import Account
from dalle_jax.data.pictures.checked_pictures import CheckedPictures, file_for
from dalle_jax.data.pictures.stores import FolderStore, Store
from dalle_jax.data.shards import parquet, picture_records, tars
from dalle_jax.data.sources import caption_listing, skip_list
from dalle_jax.data.sources.entries import Found
from dalle_jax.data.sources.metadata_files import LAYOUT
from dalle_jax.data.sources.picture_source import PictureSource
from dalle_jax.data.sources.usable_pictures import Choices, open_pictures
from dalle_jax.files import shown

# Called with (items done, items in total).
Progress = Callable[[int, int], None] | None


def choices_of(config: DataConfig, needs_captions: bool = True) -> Choices:
  """Which pictures a configuration uses, and how it splits them."""
  return Choices(
    config.validation_fraction, config.group_separator, config.caption_template, config.max_image_pixels, needs_captions
  )


def open_sources(
  config: DataConfig, data_dir: Path, account: Account, progress: Progress = None, needs_captions: bool = True
) -> dict[str, PictureSource]:
  """Lists the pictures of a source, checks them, and splits them; see `usable_pictures.open_pictures`.

  Args:
    config: the configuration; its `source` is one of KINDS.
    data_dir: directory for what is remembered of the source, and for copies of Parquet files.
    account: counts what is found, used and left out.
    progress: called with (items done, items in total).
    needs_captions: whether pictures without captions are left out.

  Raises:
    ValueError: nothing in the source can be used.
  """
  store, found = listed(config, data_dir, account, progress)
  checked = CheckedPictures(file_for(Path(config.path), data_dir), config.max_image_pixels)
  choices = choices_of(config, needs_captions)
  layout = LAYOUT if config.source == 'folder' else ''
  return open_pictures(store, found, config.path, choices, account, checked, progress, layout)


def listed(
  config: DataConfig, data_dir: Path, account: Account, progress: Progress = None
) -> tuple[Store, list[Found]]:
  """What reads the pictures of a source, and which there are; see `open_sources`."""
  store, found = KINDS[config.source](config, data_dir, account, progress)
  return store, skip_list.without(found, config.skip_list, account)


def _folder(config: DataConfig, data_dir: Path, account: Account, progress: Progress) -> tuple[Store, list[Found]]:
  del data_dir, progress
  return FolderStore(config.path), caption_listing.scan(Path(config.path), account)


def _tars(config: DataConfig, data_dir: Path, account: Account, progress: Progress) -> tuple[Store, list[Found]]:
  return tars.scan(Path(config.path), account, data_dir / 'checked', progress)


def _records(config: DataConfig, data_dir: Path, account: Account, progress: Progress) -> tuple[Store, list[Found]]:
  del data_dir, progress
  return picture_records.scan(Path(config.path), account)


def _parquet(config: DataConfig, data_dir: Path, account: Account, progress: Progress) -> tuple[Store, list[Found]]:
  """Copies Parquet files into shards, unless an earlier start has done it."""
  directory = parquet.directory_of(Path(config.path), data_dir)
  rows, plan = parquet.records(Path(config.path), config.caption_key, account)
  if not _is_copied(directory, plan):
    size = sum(size for size, _ in plan['files'].values())
    _check_space(directory, size)
    logging.warning(
      'Copying %d rows of Parquet files, about %.3g GB, to %s once, for reading in random order.',
      len(rows), size / 1e9, directory,
    )  # fmt: skip
    if not picture_records.is_begun(directory, plan):
      shutil.rmtree(directory, ignore_errors=not directory.exists())
    picture_records.Writer(directory, rows, plan).run(readers.num_threads(config), progress)
  return picture_records.scan(directory, account)


def _is_copied(directory: Path, plan: dict[str, Any]) -> bool:
  file = directory / picture_records.MANIFEST
  if not file.exists():
    return False
  manifest = picture_records.read_json_object(file)
  return all(manifest.get(key) == value for key, value in plan.items())


def _check_space(directory: Path, size: int) -> None:
  """Raises ValueError if a copy does not fit on the disk."""
  parent = next(parent for parent in directory.parents if parent.exists())
  free = shutil.disk_usage(parent).free
  if size > free:
    raise ValueError(
      f'config.data.path: the copy of the Parquet files needs about {size / 1e9:.3g} GB, but {shown(parent)} has '
      f'{free / 1e9:.3g} GB free. Set config.data.data_dir to a directory on another disk.'
    )


KINDS: dict[str, Callable[[DataConfig, Path, Account, Progress], tuple[Store, list[Found]]]] = {
  'folder': _folder,
  'tars': _tars,
  'parquet': _parquet,
  'records': _records,
}
