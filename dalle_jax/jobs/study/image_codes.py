"""Encode the pictures of a data set with a dVAE, and write codes and caption tokens; see `data.shards.code_records`."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax import bundle, hosts, sharding
from dalle_jax.config import Config
from dalle_jax.data import detect, readers, registry, unreadable
from dalle_jax.data.account import Account
from dalle_jax.data.batches import Preprocess, Source
from dalle_jax.data.checks.seen import digest_of
from dalle_jax.data.shards import code_records
from dalle_jax.data.shards.picture_records import NewRecord, Writer
from dalle_jax.data.text.caption_text import is_empty
from dalle_jax.data.text.tokenizer import Tokenizer, train_tokenizer
from dalle_jax.evaluation import reconstruction
from dalle_jax.files import replacing, shown, write_json
from dalle_jax.models.dvae import Dvae
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.progress import Progress

TOKENIZER = 'tokenizer.model'  # in the directory that is written
_DVAE = 'config.dvae.pretrained'
_REFUSED = ('mixture', 'codes', 'text')


class Prepared(NamedTuple):
  """A picture that is ready to be encoded."""

  crops: np.ndarray  # uint8 [1 + num_crops, H, W, 3], the centre crop first
  tokens: list[list[int]]  # of each caption


class Summary(NamedTuple):
  """What was written."""

  pictures: int
  left_out: list[tuple[str, str]]  # the name of each picture that could not be encoded, and why
  num_bytes: int
  account: Account | None  # of the source


@dataclasses.dataclass(frozen=True)
class CodeEncoder:
  """How the pictures of a source are encoded.

  Attributes:
    config: The configuration of the data and of the dVAE in config.dvae.pretrained.
    num_crops: Augmented crops of each training picture besides the one at the centre.
    batch_size: Crops that are encoded at once.
    tokenizer: The tokenizer of the captions; None to store no tokens.
    dvae: The dVAE.
    params: Its parameters, on the mesh.
    mesh: The devices of this host.
  """

  config: Config
  num_crops: int
  batch_size: int
  tokenizer: Tokenizer | None
  dvae: Dvae
  params: Any
  mesh: Mesh

  def records(self, source: Source, split: str) -> list[NewRecord]:
    """The pictures of a split, in their order. Only training pictures get augmented crops."""
    names = [unreadable.name_of(source, index) for index in range(len(source))]
    counts, num_crops = collections.Counter(names), self.num_crops if split == 'train' else 0
    records = []
    for index, name in enumerate(names):
      captions = [caption for caption in unreadable.captions_of(source, index) if not is_empty(caption)]
      key = name if counts[name] == 1 else f'{index}: {name}'
      read = functools.partial(self._prepare, source, index, captions, num_crops, split)
      records.append(NewRecord(key, captions or None, read))
    return records

  def _prepare(self, source: Source, index: int, captions: list[str], num_crops: int, split: str) -> Prepared:
    """Reads a picture and makes its crops with the code of training.

    Raises:
      ValueError: The picture cannot be read.
    """
    data, seed = self.config.data, stream_seed(self.config.seed, f'encode/{split}')
    make = functools.partial(
      Preprocess, image_size=data.image_size, resampling=data.resampling, max_pixels=data.max_image_pixels
    )
    centre, further = make(crop='center'), make(crop='paper_prior' if data.crop == 'paper' else data.crop)
    try:
      record = source[index]
      generators = [np.random.default_rng([seed, number, index]) for number in range(1 + num_crops)]
      crops = [(further if number else centre)(record, rng)['image'] for number, rng in enumerate(generators)]
    except Exception as error:  # any type, see `is_unreadable`
      if not unreadable.is_unreadable(error):
        raise
      raise ValueError(unreadable.first_line(error)) from error
    return Prepared(np.stack(crops), [self.tokenizer.encode(text) for text in captions] if self.tokenizer else [])

  def encode(self, pictures: Iterable[Prepared | Exception]) -> Iterator[bytes | Exception]:
    """Yields the bytes of each picture's codes, or its error, in the same order."""
    waiting: list[Prepared | Exception] = []
    num_crops = 0
    for picture in pictures:
      waiting.append(picture)
      num_crops += len(picture.crops) if isinstance(picture, Prepared) else 0
      if num_crops >= self.batch_size:
        yield from self._encode(waiting)
        waiting, num_crops = [], 0
    yield from self._encode(waiting)

  def _encode(self, pictures: list[Prepared | Exception]) -> Iterator[bytes | Exception]:
    crops = [picture.crops for picture in pictures if isinstance(picture, Prepared)]
    rows: Iterator[np.ndarray] = iter(())
    if crops:
      images = np.concatenate(crops)
      # A fixed number of rows, so that one program is compiled; `reconstruction.encode` pads only the last batch.
      padding = -len(images) % sharding.rounded_batch(self.batch_size, self.mesh)
      padded = np.concatenate([images, np.zeros((padding, *images.shape[1:]), np.uint8)])
      codes = reconstruction.encode(self.dvae, self.params, padded, self.mesh, self.batch_size)[: len(images)]
      rows = iter(np.split(codes, np.cumsum([len(own) for own in crops])[:-1]))
    for picture in pictures:
      if isinstance(picture, Prepared):
        yield code_records.encode(next(rows), picture.tokens, digest_of(picture.crops[0]))
      else:
        yield picture


def run(
  config: Config, out: Path, num_crops: int = 0, batch_size: int = 64, per_shard: int = 2_000, tokenizer: str = ''
) -> Summary:
  """Encode a data set. Goes on where an earlier start of the same command was stopped.

  Args:
    config: The configuration of the data, of the tokenizer, and of the dVAE in config.dvae.pretrained.
    out: The directory to write, which all hosts share.
    num_crops: Augmented crops of each training picture, of the kind config.data.crop.
    batch_size: Crops that each host encodes at once.
    per_shard: Pictures in a shard. Each host writes its share of the shards.
    tokenizer: The file of a tokenizer; empty to train one on the captions, as a run does.

  Raises:
    ValueError: The data, the dVAE or a setting cannot be used, or `out` has the beginning of other data.
  """
  config = _checked(config, num_crops)
  hosts.shared_directory(out, '--out')
  dataset = _dataset(config, out)
  loaded, mesh = bundle.load(Path(config.dvae.pretrained), sharding.make_mesh(), ('dvae',), _DVAE), None
  fingerprint = bundle.fingerprint(loaded.params['dvae'])
  mesh = sharding.make_mesh(devices=jax.local_devices())
  params = jax.device_put(jax.device_get(loaded.params['dvae']), sharding.replicated(mesh))
  captions = _tokenizer(config, dataset, out, tokenizer)
  job = CodeEncoder(config, num_crops, batch_size, captions, loaded.dvae, params, mesh)
  facts = {
    'format': 1, 'source': config.data.source, 'data': dataset.fingerprint, 'dvae': fingerprint,
    'model': str(Path(config.dvae.pretrained).absolute()), 'tokenizer': captions.contents_hash if captions else '',
    'image_size': config.data.image_size, 'resampling': config.data.resampling, 'grid': [config.grid_size] * 2,
    'crop': config.data.crop if num_crops else 'center', 'crops': num_crops, 'seed': config.seed,
  }  # fmt: skip
  return _write(job, dataset, out, facts, per_shard)


def _checked(config: Config, num_crops: int) -> Config:
  """The configuration with the kind of its data, and the shape of the pretrained dVAE."""
  if not config.dvae.pretrained:
    raise ValueError('config.dvae.pretrained is empty; set it to the model directory whose dVAE encodes the pictures.')
  if num_crops and config.data.crop == 'center':
    raise ValueError(
      f'--crops is {num_crops}, but config.data.crop is center, which makes all crops alike. Set config.data.crop to '
      'random or paper, or leave --crops out.'
    )
  source = detect.source_of(config.data)
  if source in _REFUSED:
    raise ValueError(
      f'config.data.path: {shown(config.data.path)} is read as {source}, which cannot be encoded.'
      + (' Encode each part of a mixture into its own directory.' if source == 'mixture' else ' Give pictures.')
    )
  path = Path(config.dvae.pretrained)
  bundle.check(path, needs=('dvae',), flag=_DVAE)
  dvae = dataclasses.replace(bundle.read_config(path).dvae, pretrained=config.dvae.pretrained)
  return dataclasses.replace(config, data=dataclasses.replace(config.data, source=source), dvae=dvae)


def _dataset(config: Config, out: Path) -> registry.Dataset:
  """The data set, prepared on host 0 and opened on all."""
  directory = Path(config.data.data_dir or out / 'work').absolute()
  make = functools.partial(registry.prepare, config.data, directory, needs_captions=config.reads_captions)
  is_first = jax.process_index() == 0
  with hosts.together('preparing the data'), Progress('data', 1, 'example', enabled=is_first) as progress:
    dataset = make(progress.update_of) if is_first else None
  with hosts.together('opening the data'):
    return dataset or make(None)


def _tokenizer(config: Config, dataset: registry.Dataset, out: Path, file: str) -> Tokenizer | None:
  """The tokenizer of the captions: that of `file`, or the one that a run on this data set trains."""
  if not config.reads_captions:
    return None
  stored = out / TOKENIZER
  with hosts.together('making the tokenizer'):
    if jax.process_index() == 0:
      captions = unreadable.captions(dataset.open('train'))
      made = Tokenizer.load(file) if file else train_tokenizer(captions, config.tokenizer.vocab_size)
      _keep(made, stored)
  with hosts.together('reading the tokenizer'):
    return Tokenizer.load(stored)


def _keep(tokenizer: Tokenizer, file: Path) -> None:
  """Writes the tokenizer, unless an earlier start has written the same.

  Raises:
    ValueError: An earlier start has written another.
  """
  if file.exists() and (old := Tokenizer.load(file).contents_hash) != tokenizer.contents_hash:
    raise ValueError(
      f'{shown(file.parent)} has the beginning of other data: the captions of an earlier start have the tokens of '
      f'another tokenizer ({old}) than those of this one ({tokenizer.contents_hash}). Give the --tokenizer and the '
      'captions of that start, or another --out.'
    )
  if not file.exists():
    with replacing(file) as partial:
      tokenizer.save(partial)


def _write(job: CodeEncoder, dataset: registry.Dataset, out: Path, facts: dict[str, Any], per_shard: int) -> Summary:
  index, count = jax.process_index(), jax.process_count()

  def writers() -> dict[str, Writer]:
    ahead = 2 * max(job.batch_size // (1 + job.num_crops), 32)
    return {
      split: Writer(out / split, job.records(dataset.open(split), split), facts, per_shard, job.encode, ahead)
      for split in dataset.splits
    }

  made: dict[str, Writer] = {}
  for is_turn in (index == 0, index != 0):  # host 0 writes the plans, and the others compare theirs
    with hosts.together('starting the shards'):
      made = writers() if is_turn else made
  if index == 0:
    write_json(out / code_records.PLAN, facts)
  with hosts.together('encoding'):
    for split, writer in made.items():
      with Progress(f'encoding {split}', 1, 'picture', enabled=index == 0) as progress:
        writer.write(readers.num_threads(job.config.data), progress.update_of, index, count)
  manifests = []
  with hosts.together('writing the manifest'):
    if index == 0:
      manifests = [writer.finish() for writer in made.values()]
      write_json(out / code_records.MANIFEST, {**facts, 'splits': list(made)})
  shards = [shard for manifest in manifests for shard in manifest['shards']]
  left_out = [(str(key), str(reason)) for shard in shards for key, reason in shard['left_out']]
  size = sum(shard['bytes'] for shard in shards)
  return Summary(sum(manifest['written'] for manifest in manifests), left_out, size, dataset.account)
