"""Prepare the data set that the configuration names.

To add a kind of data set, write a function like `_tfds`, and add its name to `SOURCES` here and in `config/data.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dalle_jax.config import DataConfig
from dalle_jax.data import detect, mixture, picture_kinds
from dalle_jax.data.account import Account
from dalle_jax.data.checks import pinned, pinned_files
from dalle_jax.data.fingerprints import fingerprint_of, hash_of
from dalle_jax.data.sources.picture_source import PictureSource
from dalle_jax.data.tfds import record_files, tfds_captions, tfds_source

if TYPE_CHECKING:  # `batches` imports Grain, which takes a second
  from dalle_jax.data.batches import Source
  from dalle_jax.data.checks.seen import Overlap

# Called with (items done, items in total) while a data set is generated or checked.
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set that is ready to be read."""

  splits: tuple[str, ...]  # 'train' first, then 'validation' if anything is held out, then splits specific to the kind
  fingerprint: str  # identifies the kind, the settings and the contents, see `fingerprints`
  _open: Callable[[str], 'Source']
  account: Account | None = None  # what was found, used and left out; None for a source that leaves out nothing
  # For each held-out split, how much of it also occurs in training; empty if they were not compared.
  overlaps: Mapping[str, 'Overlap'] = dataclasses.field(default_factory=dict)
  # Replaces the run's list of records if the run accepts other data. None if the list holds these records already, and
  # on all hosts but the first.
  adopt: Callable[[], None] | None = None

  def open(self, split: str) -> 'Source':
    """Returns random access to the records of a split.

    Raises:
      ValueError: the data set does not have this split.
    """
    if split not in self.splits:
      raise ValueError(f'The data set has no split {split!r}; it has {", ".join(self.splits)}.')
    return self._open(split)


class RunData(NamedTuple):
  """What a run knows of its own data.

  Attributes:
    file: where the run keeps the list of the records that it began with, see `pinned`.
    began: whether it has begun to train.
    is_main: whether this process writes the file; one of several hosts does.
  """

  file: Path
  began: bool
  is_main: bool = True


class Context(NamedTuple):
  """What `prepare` was given besides the configuration."""

  data_dir: Path
  progress: Progress | None
  run: RunData | None
  needs_captions: bool


def prepare(
  config: DataConfig,
  data_dir: Path,
  progress: Progress | None = None,
  run: RunData | None = None,
  needs_captions: bool = True,
) -> Dataset:
  """Prepares the configured data set: generates it if necessary, or checks its files.

  Args:
    config: the configuration of the data set.
    data_dir: directory for generated data sets.
    progress: called with (items done, items in total) from time to time.
    run: the run that trains on the data, if any. It can then continue although records have been lost.
    needs_captions: whether pictures without captions are left out.

  Raises:
    ValueError: files are missing, or do not match the configuration.
  """
  config = dataclasses.replace(config, source=detect.source_of(config))
  return SOURCES[config.source](config, Context(data_dir, progress, run, needs_captions))


def _captioned_shapes(config: DataConfig, context: Context) -> Dataset:
  from dalle_jax.data.shapes import builder  # TFDS takes a second to import

  settings: dict[str, Any] = {
    'image_size': config.image_size,
    'num_train': config.num_train,
    'num_validation': config.num_validation,
    'num_held_out': config.num_held_out,
    'two_object_fraction': config.two_object_fraction,
    'jitter': config.position_jitter,
    'seed': config.shapes_seed,
  }
  path = builder.prepare(context.data_dir, **settings, progress=context.progress)
  return Dataset(
    splits=builder.SPLITS,
    fingerprint=fingerprint_of(config.source, {'version': builder.VERSION, **settings}),
    _open=lambda split: builder.open_split(path, split),
  )


def _pictures(config: DataConfig, context: Context) -> Dataset:
  """Pictures with captions, whatever holds them."""
  account = Account('pictures')
  sources = picture_kinds.open_sources(
    config, context.data_dir, account, context.progress, needs_captions=context.needs_captions
  )
  contents = {split: hash_of([entry.row() for entry in source.entries]) for split, source in sources.items()}
  digests = [digest for source in sources.values() for digest in source.digests]
  fingerprint = fingerprint_of(config.source, contents, digests)
  run, adopt = context.run, None
  if run is not None:
    lists = {split: pinned.described(source.entries, source.digests) for split, source in sources.items()}
    fresh = pinned.RecordLists(lists, fingerprint)
    old = pinned.first(run.file, fresh, run.began, run.is_main)
    records = pinned.keep(old, fresh, config.max_bad_share)
    fingerprint, adopt = records.fingerprint, _adopting(run, old, fresh, records.fingerprint)
    if records is not fresh:
      store = sources['train'].store
      sources = {
        split: PictureSource(store, [record.entry for record in described])
        for split, described in records.lists.items()
      }
  return Dataset(tuple(sources), fingerprint, sources.__getitem__, account, adopt=adopt)


def _mixture(config: DataConfig, context: Context) -> Dataset:
  """Several sources, each with its share of a batch."""
  parts = mixture.parts_of(config.path)
  datasets = []
  for number, part in enumerate(parts):
    run = context.run and context.run._replace(file=context.run.file.with_name(f'records_{number}.json'))
    own = dataclasses.replace(config, source='auto', path=part.path)
    try:
      own = dataclasses.replace(own, source=detect.source_of(own))
      if own.source in ('mixture', 'text'):
        raise ValueError(f'{part.path} is no source of pictures')
      datasets.append(SOURCES[own.source](own, context._replace(run=run)))
    except ValueError as error:
      raise ValueError(f'Part {number + 1} of the mixture in config.data.path ({part.path}): {error}') from error
  splits = [split for split in datasets[0].splits if all(split in dataset.splits for dataset in datasets)]
  account = Account('pictures')
  for part, dataset in zip(parts, datasets, strict=True):
    if dataset.account:
      account.include(dataset.account)
    account.note(f'{part.share:.0%} of each batch from {part.path}', '', len(dataset.open('train')))

  def open_split(split: str) -> mixture.Mixture:
    return mixture.Mixture([dataset.open(split) for dataset in datasets], [part.share for part in parts])

  def adopt() -> None:
    for dataset in datasets:
      if dataset.adopt:
        dataset.adopt()

  facts = {'parts': [[part.share, dataset.fingerprint] for part, dataset in zip(parts, datasets, strict=True)]}
  return Dataset(
    tuple(splits), fingerprint_of('mixture', facts), open_split, account,
    adopt=adopt if any(dataset.adopt for dataset in datasets) else None,
  )  # fmt: skip


def _adopting(
  run: RunData, old: pinned.RecordLists, fresh: pinned.RecordLists, fingerprint: str
) -> Callable[[], None] | None:
  """A function that replaces the run's list by the records found now, or None; see `Dataset.adopt`."""
  is_other = fingerprint == fresh.fingerprint != old.fingerprint
  return functools.partial(pinned.write, run.file, fresh) if is_other and run.is_main else None


def _tfds(config: DataConfig, context: Context) -> Dataset:
  data_dir, progress, run = context.data_dir, context.progress, context.run
  expressions = _tfds_splits(config)
  sources = {split: _open_tfds(config, expression) for split, expression in expressions.items()}
  contents = {
    'name': tfds_source.full_name(config.path),
    'caption_key': config.caption_key,
    'splits': {split: [expressions[split], len(source)] for split, source in sources.items()},
  }
  names = dict.fromkeys(expression.split('[')[0] for expression in expressions.values())
  files = tfds_source.record_files(config.path, names)
  digests = record_files.digests(config.path, files, data_dir, progress)
  fingerprint = fingerprint_of(config.source, contents, digests)
  adopt = None
  if run is not None:
    fresh = pinned_files.listed(files, digests, fingerprint)
    old = pinned.first(run.file, fresh, run.began, run.is_main)
    listing = fingerprint_of(config.source, contents)
    fingerprint = pinned_files.keep(old, fresh, files, listing, config.max_bad_share)
    adopt = _adopting(run, old, fresh, fingerprint)
  account = tfds_captions.count_captions(sources, [contents, digests], data_dir, progress)
  return Dataset(
    splits=tuple(expressions),
    fingerprint=fingerprint,
    _open=lambda split: _open_tfds(config, expressions[split]),
    account=account,
    adopt=adopt,
  )


def _open_tfds(config: DataConfig, expression: str) -> tfds_source.TfdsSource:
  return tfds_source.open_tfds(config.path, expression, config.caption_key)


def _tfds_splits(config: DataConfig) -> dict[str, str]:
  """Maps our splits to TFDS split expressions.

  'validation' is the data set's first non-empty split among 'validation', 'val' and 'test'. If there is none, it is the
  end of 'train', with config.data.validation_fraction of its examples.
  """
  counts = tfds_source.splits(config.path)
  if not counts.get('train'):
    raise ValueError(f'config.data.path: {config.path} has no split "train"; it has {", ".join(counts)}.')
  held_out_split = next((name for name in ('validation', 'val', 'test') if counts.get(name)), None)
  if held_out_split:
    return {'train': 'train', 'validation': held_out_split}
  num_held_out = round(counts['train'] * config.validation_fraction)
  if config.validation_fraction > 0:
    num_held_out = max(num_held_out, 1)
  num_train = max(counts['train'] - num_held_out, 1)
  if num_train == counts['train']:
    return {'train': 'train'}
  return {'train': f'train[:{num_train}]', 'validation': f'train[{num_train}:]'}


def _text(config: DataConfig, context: Context) -> Dataset:
  del config, context
  raise ValueError(
    "config.data.source is 'text', which has no images. Choose another source, or train on text with "
    'config.task=sequence and config.model.tokens=text.'
  )


SOURCES: dict[str, Callable[[DataConfig, Context], Dataset]] = {
  'captioned_shapes': _captioned_shapes,
  **dict.fromkeys(picture_kinds.KINDS, _pictures),
  'tfds': _tfds,
  'mixture': _mixture,
  'text': _text,  # always refused here; `data.sources.corpus` reads text
}
