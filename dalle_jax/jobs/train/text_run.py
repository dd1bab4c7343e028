"""The job of `config.task='sequence'` over text: text, tokenizer, a model of it trained or counted, and its figures."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax import bundle, hosts, sharding
from dalle_jax.config import Config, SequenceConfig
from dalle_jax.data import corpus, text_tokenizer
from dalle_jax.data.batches import Batches
from dalle_jax.data.text_tokenizer import TextTokenizer
from dalle_jax.evaluation import sequence_likelihood as evaluation
from dalle_jax.hosts import say
from dalle_jax.jobs.train.workspace import Workspace, print_scores
from dalle_jax.reporting import curves, html
from dalle_jax.reporting.run_curves import run_curves
from dalle_jax.sampling.continuation import continue_text
from dalle_jax.training import ngram_counts
from dalle_jax.training.description import describe
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.loop import train
from dalle_jax.training.mesh_costs import say_costs
from dalle_jax.training.progress import Progress
from dalle_jax.training.state import all_params
from dalle_jax.training.tasks.sequence import SequenceTask

Tokens = dict[str, np.ndarray]  # ids of each split


def run(config: Config, workdir: str, stop_after: str = 'report') -> dict[str, float]:
  """Runs the stages and returns the scores (none if stopped before the report).

  Raises:
    ValueError: the configuration, the text or the work directory cannot be used.
    Interrupted: on Ctrl-C or SIGTERM, after saving.
    NonFiniteError: training diverged.
  """
  mesh = sharding.make_mesh(config.mesh, model=config)
  sharding.check(config, mesh)
  space = Workspace(workdir, config)
  say_costs(config, mesh)
  with space.timed('data'):
    data = config.data
    with hosts.together('reading the text'):
      texts = corpus.read_corpus(data.path, data.validation_path, data.validation_fraction)
  say('data: ' + ', '.join(f'{sum(map(len, parts)):,} bytes {split}' for split, parts in texts.items()))
  if stop_after == 'data':
    return {}
  with space.timed('tokenizer'):
    tokenizer = _tokenizer(config, space, texts)
    tokens = {split: tokenizer.encode(b'\n'.join(parts)) for split, parts in texts.items()}
  counts = ', '.join(f'{len(ids):,} {split}' for split, ids in tokens.items())
  say(f'tokenizer: {tokenizer.vocab_size} ids, {counts}')
  for ids in tokens.values():
    corpus.Windows(ids, config.model.length)  # refused before anything long begins
  if stop_after == 'tokenizer':
    return {}
  task = SequenceTask(config, tokenizer.vocab_size)
  fingerprint = corpus.fingerprint(texts)
  with space.timed('sequence'):
    if config.model.kind == 'ngram':
      params = count_ngrams(config.model, [tokens['train']], task.vocab_size, mesh, starts=False)
    else:
      params = _train(config, space, task, tokens, mesh, fingerprint)
  bundle.save(space.model, config, tokenizer, {'model': params}, fingerprint)
  if stop_after != 'report':
    return {}
  with space.timed('report'):
    scores, series, samples = measure(config, task, tokenizer, params, tokens, mesh)
  return _write(config, space, scores, series, samples)


def _tokenizer(config: Config, space: Workspace, texts: dict[str, list[bytes]]) -> TextTokenizer:
  """Loads the run's tokenizer, after process 0 has learnt it from the training text where there was none."""
  with hosts.together('learning the tokenizer'):
    if jax.process_index() == 0 and config.tokenizer.kind != 'bytes' and not space.tokenizer.exists():
      space.keep_tokenizer(text_tokenizer.train_pieces(texts['train'], config.tokenizer.vocab_size))
  return text_tokenizer.load(config.tokenizer.kind, space.tokenizer)


def _train(config: Config, space: Workspace, task: SequenceTask, tokens: Tokens, mesh: Mesh, fingerprint: str) -> Any:
  """The averaged parameters after training by gradient."""
  training, length = config.sequence_training, config.model.length
  make = functools.partial(
    Batches, batch_size=training.batch_size, rows=sharding.own_rows(mesh, training.batch_size),
    num_threads=config.data.num_threads, fingerprint=fingerprint,
  )  # fmt: skip
  seed = stream_seed(config.seed, task.name)
  stream = make(corpus.Windows(tokens['train'], length), corpus.Crop(length, random=True), seed=seed)
  held_out = corpus.Windows(tokens['validation'], length) if 'validation' in tokens else None

  def evaluation() -> Iterator[dict]:
    batches = make(held_out, corpus.Crop(length, random=False), seed=0, shuffle=False)
    return itertools.islice(batches, min(training.eval_batches, -(-len(held_out) // training.batch_size)))

  state = train(
    task, training, mesh=mesh, seed=seed, workdir=space.path / task.name, batches=stream,
    eval_batches=evaluation if held_out else None, logging=config.logging, about=describe(config, mesh, fingerprint),
    profile=config.profile,
  )  # fmt: skip
  return all_params(state, ema=True)['model']


def count_ngrams(
  model: SequenceConfig, sequences: Iterable[np.ndarray], vocab_size: int, mesh: Mesh, starts: bool
) -> Any:
  """The table of n-grams of sequences, replicated over the mesh; counting is so fast that nothing is kept.

  Args:
    model: order and smoothing.
    sequences: ids [T_i] each, read once.
    vocab_size: ids lie below.
    mesh: of the devices.
    starts: whether sequences have a beginning, or are cut at any place.
  """
  levels = ngram_counts.count(sequences, vocab_size, model.order, starts)
  table = ngram_counts.estimate(levels, smoothing=model.smoothing, discount=model.discount, add_k=model.add_k)
  sizes = ', '.join(f'{len(level["token"]):,} of order {k}' for k, level in enumerate(table, start=1))
  say(f'n-grams: {sizes}')
  return jax.device_put(table, sharding.replicated(mesh))


def measure(
  config: Config, task: SequenceTask, tokenizer: TextTokenizer, params: Any, tokens: Tokens, mesh: Mesh
) -> tuple[dict[str, float], curves.Series, list[str]]:
  """Scores, bits per token by the length of context given, and samples of text."""
  settings, model = config.evaluation, task.model
  split = 'validation' if 'validation' in tokens else 'train'
  count = min(settings.num_tokens, len(tokens[split])) // model.length * model.length
  ids = tokens[split][:count]
  shown = jax.process_index() == 0
  with Progress('measuring', count // model.length, 'sequence', enabled=shown) as progress:
    rows = ids.reshape(-1, model.length)
    found = evaluation.nats(model, params, rows, mesh, settings.batch_size, progress.update_of)
  num_bytes = int(tokenizer.lengths(ids).sum())
  scores = {f'{split}/{name}': value for name, value in evaluation.summarize(found, num_bytes).items()}
  lengths = evaluation.context_lengths(model.length)
  with Progress('context', len(lengths), 'length', enabled=shown) as progress:
    bits = evaluation.by_context(
      model, params, tokens[split], mesh, settings.batch_size, lengths, settings.num_context_targets, progress.update_of
    )
  scores |= {f'context/{length}': float(value) for length, value in zip(lengths, bits, strict=True)}
  scores['model/num_values'] = float(evaluation.num_values(params))
  sampling = config.sampling
  drawn = continue_text(
    model, params, [np.empty(0, np.int32)], settings.num_text_samples, mesh, seed=stream_seed(config.seed, 'samples'),
    temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, batch_size=sampling.batch_size,
  )  # fmt: skip
  samples = [tokenizer.decode(ids).decode('utf-8', 'replace') for ids in drawn[0]]
  return scores, (np.asarray(lengths), bits), samples


def _write(
  config: Config, space: Workspace, scores: dict[str, float], series: curves.Series, samples: list[str]
) -> dict[str, float]:
  """Writes scores.json, samples.txt and report.html, prints where they are, and returns all scores."""
  scores = scores | space.seconds()
  if jax.process_index() != 0:
    return scores
  space.write('scores.json', scores)
  (space.path / 'samples.txt').write_text('\n\n----\n\n'.join(samples) + '\n', encoding='utf-8')
  html.write_report(
    space.path / 'report.html',
    title=f'dalle_jax: {space.path.name}',
    summary=scores,
    config=config.to_dict(),
    curves=[(curves.CONTEXT_TITLE, curves.context_svg({'held out': series})), *run_curves(space.path)],
    texts=[(f'Sample {i}', sample) for i, sample in enumerate(samples)],
    notes=[f'A {config.model.kind} of text. Samples: temperature {config.sampling.temperature:g}, none picked.'],
  )
  print_scores(space.path, scores, ['samples.txt', 'scores.json', 'report.html', 'model'])
  return scores
