"""Text for training: the corpus, its tokenizer, batches of windows, and n-gram counts."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax import hosts, sharding
from dalle_jax.config import Config, SequenceConfig
from dalle_jax.data import readers
from dalle_jax.data.account import Account
from dalle_jax.data.batches import Batches
from dalle_jax.data.sources import corpus
from dalle_jax.data.text import text_tokenizer
from dalle_jax.data.text.text_tokenizer import TextTokenizer
from dalle_jax.hosts import say
from dalle_jax.jobs.train.experiment import Experiment
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.stages import Stage
from dalle_jax.training import ngram_counts
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.stage_tasks import training_of


@dataclasses.dataclass(frozen=True)
class TextData:
  """The text of each split, first as bytes and after `tokenize` also as token ids.

  Attributes:
    texts: The documents of each split.
    fingerprint: The fingerprint of the text.
    ids: The token ids of each split, int [N]; empty before `tokenize`.
  """

  texts: dict[str, list[bytes]]
  fingerprint: str
  ids: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


TextExperiment = Experiment[TextData, TextTokenizer]


def prepare(config: Config, space: Workspace) -> TextData:
  """Read the corpus.

  Raises:
    ValueError: A file is missing or unreadable, or there is no text.
  """
  del space
  data = config.data
  with hosts.together('reading the text'):
    account = Account('texts')
    texts = corpus.read_corpus(data.path, data.validation_path, data.validation_fraction, account)
  say('data: ' + ', '.join(f'{sum(map(len, documents)):,} bytes {split}' for split, documents in texts.items()))
  say(str(account))
  return TextData(texts, corpus.fingerprint(texts))


def tokenize(config: Config, space: Workspace, dataset: TextData) -> tuple[TextData, TextTokenizer]:
  """Return the text with its token ids, and the run's tokenizer.

  Host 0 trains the tokenizer on the training text, unless an earlier start has trained it.

  Raises:
    ValueError: A split is shorter than one window.
  """
  with space.timed('tokenizer'):
    with hosts.together('training the tokenizer'):
      if jax.process_index() == 0 and config.tokenizer.kind != 'bytes' and not space.tokenizer.exists():
        space.keep_tokenizer(text_tokenizer.train_pieces(dataset.texts['train'], config.tokenizer.vocab_size))
    tokenizer = text_tokenizer.load(config.tokenizer.kind, space.tokenizer)
    ids = {split: tokenizer.encode(b'\n'.join(texts)) for split, texts in dataset.texts.items()}
  counts = ', '.join(f'{len(split_ids):,} {split}' for split, split_ids in ids.items())
  say(f'tokenizer: {tokenizer.vocab_size} ids, {counts}')
  for split_ids in ids.values():
    corpus.Windows(split_ids, config.model.length)  # raises if the split is too short, before training starts
  return dataclasses.replace(dataset, ids=ids), tokenizer


def make_batches(
  experiment: TextExperiment, stage: Stage
) -> tuple[Batches, Callable[[], Iterator[dict[str, np.ndarray]]] | None]:
  """Return the endless stream of training batches, and a function that starts a pass over held-out batches.

  The function is None if no text is held out.
  """
  config, data = experiment.config, experiment.dataset
  training, length = training_of(config, stage.name), config.model.length
  make = functools.partial(
    Batches, batch_size=training.batch_size, rows=sharding.own_rows(experiment.mesh, training.batch_size),
    num_threads=readers.num_threads(config.data), fingerprint=data.fingerprint,
  )  # fmt: skip
  seed = stream_seed(config.seed, stage.name)
  stream = make(corpus.Windows(data.ids['train'], length), corpus.Crop(length, random=True), seed=seed)
  if 'validation' not in data.ids:
    return stream, None
  held_out = corpus.Windows(data.ids['validation'], length)
  num_batches = min(training.eval_batches, -(-len(held_out) // training.batch_size))

  def evaluation() -> Iterator[dict[str, np.ndarray]]:
    batches = make(held_out, corpus.Crop(length, random=False), seed=0, shuffle=False)
    return itertools.islice(batches, num_batches)

  return stream, evaluation


def count_ngrams(experiment: TextExperiment, params: dict[str, Any]) -> Any:
  """Count the n-grams of the training text, where windows start anywhere in a document."""
  del params
  ids, vocab_size = experiment.dataset.ids['train'], experiment.text_vocab_size
  return estimate_ngrams(experiment.config.model, [ids], vocab_size, experiment.mesh, starts=False)


def estimate_ngrams(
  model: SequenceConfig, sequences: Iterable[np.ndarray], vocab_size: int, mesh: Mesh, starts: bool
) -> Any:
  """Count n-grams and return the table of their estimated probabilities, replicated over the mesh.

  Counting is fast, so it needs no checkpoints.

  Args:
    model: The configuration of the n-gram model, with its order and smoothing.
    sequences: The token ids of each sequence, int [T_i]; iterated once.
    vocab_size: The size of the vocabulary.
    mesh: The device mesh.
    starts: Whether each sequence starts at a true beginning, not anywhere inside a longer text.
  """
  levels = ngram_counts.count(sequences, vocab_size, model.order, starts)
  table = ngram_counts.estimate(levels, smoothing=model.smoothing, discount=model.discount, add_k=model.add_k)
  sizes = ', '.join(f'{len(level["token"]):,} of order {k}' for k, level in enumerate(table, start=1))
  say(f'n-grams: {sizes}')
  return jax.device_put(table, sharding.replicated(mesh))
