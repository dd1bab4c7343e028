"""Scores, samples and the report of a model of text."""

from typing import NamedTuple

import jax
import numpy as np

from dalle_jax.evaluation import sequence_likelihood
from dalle_jax.files import write_whole
from dalle_jax.jobs.train.text_data import TextExperiment
from dalle_jax.jobs.train.workspace import print_scores
from dalle_jax.reporting import curves, html
from dalle_jax.reporting.run_curves import run_curves
from dalle_jax.sampling.continuation import continue_text
from dalle_jax.training.keys import stream_seed
from dalle_jax.training.progress import Progress
from dalle_jax.training.tasks.sequence import SequenceTask


class TextResults(NamedTuple):
  """The scores of a model of text, the curve of bits per token by context length, and samples of text."""

  scores: dict[str, float]
  context_curve: curves.Series
  split: str  # what the scores and the curve were measured on
  samples: list[str]


def measure(experiment: TextExperiment, params: dict) -> TextResults:
  """Measure the model on held-out text, or on the training text if nothing is held out, and sample from it.

  Args:
    experiment: A run of a model of text.
    params: The parameters of each part; the only part is 'model'.
  """
  config, mesh, tokenizer, ids = experiment.config, experiment.mesh, experiment.tokenizer, experiment.dataset.ids
  task = experiment.task('sequence')
  assert isinstance(task, SequenceTask)
  settings, model, model_params = config.evaluation, task.model, params['model']
  split = 'validation' if 'validation' in ids else 'train'
  count = min(settings.num_tokens, len(ids[split])) // model.length * model.length
  measured_ids = ids[split][:count]
  is_main = jax.process_index() == 0
  with Progress('measuring', count // model.length, 'sequence', enabled=is_main) as progress:
    rows = measured_ids.reshape(-1, model.length)
    nats = sequence_likelihood.nats(model, model_params, rows, mesh, settings.batch_size, progress.update_of)
  num_bytes = int(tokenizer.lengths(measured_ids).sum())
  scores = {f'{split}/{name}': value for name, value in sequence_likelihood.summarize(nats, num_bytes).items()}
  lengths = sequence_likelihood.context_lengths(model.length)
  with Progress('context', len(lengths), 'length', enabled=is_main) as progress:
    bits = sequence_likelihood.by_context(
      model,
      model_params,
      ids[split],
      mesh,
      settings.batch_size,
      lengths,
      settings.num_context_targets,
      progress.update_of,
    )
  scores |= {f'context/{length}': float(value) for length, value in zip(lengths, bits, strict=True)}
  scores['model/num_values'] = float(sequence_likelihood.num_values(model_params))
  sampling = config.sampling
  sampled_ids = continue_text(
    model, model_params, [np.empty(0, np.int32)], settings.num_text_samples, mesh,
    seed=stream_seed(config.seed, 'samples'), temperature=sampling.temperature, top_k=sampling.top_k,
    top_p=sampling.top_p, batch_size=sampling.batch_size,
  )  # fmt: skip
  samples = [tokenizer.decode(sample).decode('utf-8', 'replace') for sample in sampled_ids[0]]
  return TextResults(scores, (np.asarray(lengths), bits), split, samples)


def write(experiment: TextExperiment, results: TextResults) -> dict[str, float]:
  """Write scores.json, samples.txt and report.html, print their paths, and return all scores."""
  config, space = experiment.config, experiment.space
  scores = results.scores | space.seconds()
  if jax.process_index() != 0:
    return scores
  space.write('scores.json', scores)
  write_whole(space.path / 'samples.txt', ('\n\n----\n\n'.join(results.samples) + '\n').encode())
  html.write_report(
    space.path / 'report.html',
    title=f'dalle_jax: {space.path.name}',
    summary=scores,
    config=config.to_dict(),
    curves=[
      (curves.CONTEXT_TITLE, curves.context_svg({results.split: results.context_curve})),
      *run_curves(space.path),
    ],
    texts=[(f'Sample {i}', sample) for i, sample in enumerate(results.samples)],
    notes=[
      f'A model of text of kind {config.model.kind}. All samples are shown, at temperature '
      f'{config.sampling.temperature:g}.'
    ],
  )
  print_scores(space.path, scores, ['samples.txt', 'scores.json', 'report.html', 'model'])
  return scores
