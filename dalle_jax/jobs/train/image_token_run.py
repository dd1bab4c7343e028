"""Sequence models over a dVAE's codes, or over captions followed by them: how n-grams are counted, and the figures."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.data.registry import Dataset
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.evaluation import sequence_likelihood
from dalle_jax.evaluation import token_likelihood as evaluation
from dalle_jax.jobs import examples
from dalle_jax.jobs.train.text_run import count_ngrams
from dalle_jax.reporting import curves
from dalle_jax.training.progress import Progress
from dalle_jax.training.tasks.sequence import ImageTokensTask


def make_task(config: Config, tokenizer: Tokenizer | None) -> ImageTokensTask:
  return ImageTokensTask(config, tokenizer.vocab_size if tokenizer else 0)


def streams(
  config: Config,
  dataset: Dataset,
  split: str,
  tokenizer: Tokenizer | None,
  params: Any,
  mesh: Mesh,
  most: int | None = None,
) -> Iterator[np.ndarray]:
  """The streams of a split's first records, `most` of them or all, in batches [B, length]; encoded on the devices.

  Every process reads all of them. Pictures are cropped at the centre.
  """
  source = dataset.open(split)
  number = min(most or len(source), len(source))
  run = jax.jit(make_task(config, tokenizer).tokens, out_shardings=sharding.replicated(mesh))
  with Progress(f'encoding {split}', number, 'image', enabled=jax.process_index() == 0) as progress:
    done = 0
    for rows, batch in examples.batches(config, tokenizer, source, number, config.evaluation.batch_size, mesh):
      with sharding.use_mesh(mesh):
        found = jax.device_get(run(params, sharding.from_whole(batch, mesh)))
      yield found[:rows]
      done += rows
      progress.update(done)


def count_streams(
  config: Config, dataset: Dataset, tokenizer: Tokenizer | None, dvae: Any, mesh: Mesh
) -> dict[str, Any]:
  """{'model': the table of n-grams of the training split, 'dvae'}; each image is a sequence with a beginning."""
  rows = (row for batch in streams(config, dataset, 'train', tokenizer, {'dvae': dvae}, mesh) for row in batch)
  vocab_size = make_task(config, tokenizer).model.vocab_size
  return {'model': count_ngrams(config.model, rows, vocab_size, mesh, starts=True), 'dvae': dvae}


def measure(
  config: Config, dataset: Dataset, tokenizer: Tokenizer | None, params: dict[str, Any], mesh: Mesh
) -> tuple[dict[str, float], list[tuple[str, str]]]:
  """Scores on held-out images, and, of images alone, the curve (title, SVG) of bits by the length of context."""
  model = make_task(config, tokenizer).model
  split = examples.held_out_split(dataset)
  most = max(config.evaluation.num_tokens // model.length, 1)
  rows = np.concatenate(list(streams(config, dataset, split, tokenizer, params, mesh, most)))
  with Progress('measuring', len(rows), 'image', enabled=jax.process_index() == 0) as progress:
    nats = sequence_likelihood.nats(
      model, params['model'], rows, mesh, config.evaluation.batch_size, progress.update_of
    )
  figures = evaluation.summarize(nats, np.asarray(model.counted(rows)), model.text_length)
  scores = {f'{split}/{name}': value for name, value in figures.items()}
  scores['model/num_values'] = float(sequence_likelihood.num_values(params['model']))
  if model.text_length:
    return scores, []
  lengths, bits = evaluation.by_position(nats)
  scores |= {f'context/{length}': float(value) for length, value in zip(lengths, bits, strict=True)}
  title = curves.POSITION_TITLE
  return scores, [(title, curves.context_svg({'held out': (lengths, bits)}, title))]
