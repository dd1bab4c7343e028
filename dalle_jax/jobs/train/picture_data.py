"""Captioned images for training: the data set, the captions' tokenizer, batches, and n-grams of image tokens."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dalle_jax import hosts, sharding
from dalle_jax.config import Config
from dalle_jax.data import detect, readers, registry, unreadable
from dalle_jax.data.batches import Batches, Preprocess
from dalle_jax.data.registry import Dataset
from dalle_jax.data.sources.picture_source import EachCaption
from dalle_jax.data.text.tokenizer import Tokenizer, train_tokenizer
from dalle_jax.data.text.wrong_captions import WrongCaptions
from dalle_jax.data.unreadable import MOST_NAMED, Readable, UnreadableError
from dalle_jax.hosts import say
from dalle_jax.jobs import examples, seen_records
from dalle_jax.jobs.train import pretrained, trained_on
from dalle_jax.jobs.train.experiment import Experiment
from dalle_jax.jobs.train.text_data import estimate_ngrams
from dalle_jax.jobs.train.workspace import RECORDS, Workspace
from dalle_jax.stages import Stage
from dalle_jax.training.bad_records import BadDataError, LeftOutError
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.progress import Progress
from dalle_jax.training.stage_tasks import task_module, training_of
from dalle_jax.training.tasks.sequence import ImageTokensTask

PictureExperiment = Experiment[Dataset, Tokenizer | None]


def check(config: Config) -> None:
  """Check the tokenizer and the pretrained dVAE of a configuration before a run writes anything.

  Raises:
    ValueError: The tokenizer cannot be trained, or the dVAE in config.dvae.pretrained cannot be used.
  """
  if config.tokenizer.kind == 'clip':
    raise ValueError(
      "config.tokenizer.kind is 'clip', which only models imported by tools/import_openai_clip.py have. Set it to "
      "'captions' to train a tokenizer."
    )
  with hosts.together('checking the models that the configuration names'):
    pretrained.check(config)


def with_source(config: Config) -> Config:
  """The configuration with the kind of its data in place of 'auto'.

  Raises:
    ValueError: The data's path holds nothing that can be read, or would not be read.
  """
  if config.data.source == 'captioned_shapes' and config.data.path:
    raise ValueError(
      f'config.data.path is {config.data.path!r}, but config.data.source=captioned_shapes makes its own pictures. Set '
      'config.data.source=auto to read the path, or leave config.data.path empty.'
    )
  if config.data.source != 'auto':
    return config
  with hosts.together('looking at the data'):
    kind = 'text' if config.models_text else detect.source_of(config.data)
  say(f'data: {config.data.path} is read as {kind} (config.data.source)')
  return dataclasses.replace(config, data=dataclasses.replace(config.data, source=kind))


def prepare(config: Config, space: Workspace) -> Dataset:
  """Prepare the data set on host 0, then open it on all hosts, which share a file system.

  Held-out records that also occur in training are left out.
  """
  with Progress('data', 1, 'example', enabled=jax.process_index() == 0) as progress:
    run = registry.RunData(space.path / RECORDS, _has_begun(config, space), jax.process_index() == 0)
    make = functools.partial(
      registry.prepare, config.data, space.data(config), run=run, needs_captions=config.reads_captions
    )
    with hosts.together('making the data'):
      if jax.process_index() == 0:
        dataset = make(progress.update_of)
    with hosts.together('opening the data'):
      dataset = dataset if jax.process_index() == 0 else make(None)
  counts = ', '.join(f'{len(dataset.open(split))} {split}' for split in dataset.splits)
  say(f'data: {config.data.source} with {counts}')
  if dataset.account:
    say(str(dataset.account))
  return seen_records.leave_out(config, dataset, dataset, space.path / seen_records.DIRECTORY)


def _has_begun(config: Config, space: Workspace) -> bool:
  """Whether a stage of the run is trained at least in part. Counting n-grams writes no checkpoints, but this record."""
  patterns = ('*/checkpoints/[0-9]*', *([f'*/{trained_on.FILE}'] if config.counts_ngrams else []))
  return any(any(space.path.glob(pattern)) for pattern in patterns)


def tokenize(config: Config, space: Workspace, dataset: Dataset) -> tuple[Dataset, Tokenizer | None]:
  """Return the data set unchanged, and the run's tokenizer; None if no stage reads captions.

  Host 0 trains the tokenizer on the training captions, unless an earlier start has trained it.
  """
  if not config.reads_captions:
    return dataset, None
  with space.timed('tokenizer'):
    with hosts.together('training the tokenizer'):
      if jax.process_index() == 0 and not space.tokenizer.exists():
        captions = unreadable.captions(dataset.open('train'))
        space.keep_tokenizer(train_tokenizer(captions, config.tokenizer.vocab_size))
    tokenizer = Tokenizer.load(space.tokenizer)
  say(f'tokenizer: {tokenizer.vocab_size} pieces')
  return dataset, tokenizer


def make_batches(
  experiment: PictureExperiment, stage: Stage
) -> tuple[Batches, Callable[[], Iterator[dict[str, np.ndarray]]] | None]:
  """Return the endless stream of training batches, and a function that starts a pass over held-out batches.

  The function is None if the data set has no validation split.
  """
  config, dataset, mesh = experiment.config, experiment.dataset, experiment.mesh
  training, fields = training_of(config, stage.name), task_module(stage.name).batch_fields(config)
  transform = functools.partial(
    Preprocess, image_size=config.data.image_size, resampling=config.data.resampling,
    tokenizer=experiment.tokenizer if 'text' in fields else None, text_length=config.tokenizer.text_length,
    max_pixels=config.data.max_image_pixels,
  )  # fmt: skip
  make = functools.partial(
    Batches, batch_size=training.batch_size, rows=sharding.own_rows(mesh, training.batch_size),
    num_threads=readers.num_threads(config.data), fingerprint=dataset.fingerprint,
    max_bad_share=config.data.max_bad_share,
  )  # fmt: skip
  # A mirrored image may contradict its caption: captions mention left, right and written words.
  flip = config.data.flip and stage.mirrors
  crop = config.data.crop
  if crop == 'paper':
    crop = 'paper_dvae' if stage.mirrors else 'paper_prior'
  source, wrong_captions = dataset.open('train'), None
  if 'wrong' in fields:
    wrong_captions = WrongCaptions(unreadable.captions(source))
  augmented = transform(crop=crop, flip=flip, bpe_dropout=config.tokenizer.bpe_dropout, wrong_captions=wrong_captions)
  workers = readers.num_workers(config.data)
  stream = make(source, augmented, seed=stream_seed(config.seed, stage.name), num_workers=workers)
  if 'validation' not in dataset.splits:
    return stream, None
  held_out, bad = dataset.open('validation'), set[int]()
  if 'text' in fields:
    held_out = EachCaption(held_out)

  def evaluation() -> Iterator[dict[str, np.ndarray]]:
    """Yields the readable held-out records. If one turns out to be unreadable, the last step raises LeftOutError."""
    records = Readable(held_out, bad)
    batches = make(records, transform(crop='center', flip=False), seed=0, shuffle=False, held_out=True)
    num_batches = min(training.eval_batches, -(-len(records) // training.batch_size))
    try:
      yield from itertools.islice(batches, num_batches)
    except UnreadableError as error:
      raise BadDataError(f'The held-out data: {error}', on_all_hosts=jax.process_count() == 1) from error
    is_bad = np.isin(np.arange(len(records)), list(batches.bad_indices))
    newly_bad = [records.indices[i] for i in np.flatnonzero(hosts.any_host(is_bad))]
    if not newly_bad:
      return
    bad.update(newly_bad)
    if len(bad) > min(unreadable.most_bad(len(held_out), config.data.max_bad_share), len(held_out) - 1):
      names = ', '.join(unreadable.name_of(held_out, index) for index in sorted(bad)[:MOST_NAMED])
      raise BadDataError(f'{len(bad)} of {len(held_out)} held-out records cannot be read, such as {names}.')
    raise LeftOutError(len(bad))

  return stream, evaluation


def image_tokens_task(experiment: PictureExperiment) -> ImageTokensTask:
  """The task of a run of a sequence model of image tokens."""
  task = experiment.task('sequence')
  assert isinstance(task, ImageTokensTask)
  return task


def token_streams(
  experiment: PictureExperiment, split: str, params: dict[str, Any], most: int | None = None
) -> Iterator[np.ndarray]:
  """Yield the token streams of a split's first records in batches, int32 [B, length].

  The devices encode the images, cropped at the centre. Every host reads all records.

  Args:
    experiment: A run of a sequence model of image tokens.
    split: The split's name.
    params: The parameters of each part, including the dVAE.
    most: The maximum number of records; None for all.
  """
  config, mesh, tokenizer = experiment.config, experiment.mesh, experiment.tokenizer
  source = experiment.dataset.open(split)
  count = min(most or len(source), len(source))
  encode = jax.jit(image_tokens_task(experiment).tokens, out_shardings=sharding.replicated(mesh))
  with Progress(f'encoding {split}', count, 'image', enabled=jax.process_index() == 0) as progress:
    done = 0
    for num_rows, batch in examples.batches(config, tokenizer, source, count, config.evaluation.batch_size, mesh):
      with sharding.use_mesh(mesh):
        streams = jax.device_get(encode(params, sharding.from_whole(batch, mesh)))
      yield streams[:num_rows]
      done += num_rows
      progress.update(done)


def count_ngrams(experiment: PictureExperiment, params: dict[str, Any]) -> Any:
  """Count the n-grams of the training split's token streams. Each stream starts at the first token of its sequence."""
  rows = (row for batch in token_streams(experiment, 'train', params) for row in batch)
  vocab_size = image_tokens_task(experiment).model.vocab_size
  return estimate_ngrams(experiment.config.model, rows, vocab_size, experiment.mesh, starts=True)
