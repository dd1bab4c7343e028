"""Reads the results of a training run from its work directory."""

from dalle_jax.training.metrics_log import read_metrics


def learnt(directory):
  """The metrics of a stage, without the ones that depend on speed."""
  return [
    {name: value for name, value in line.items() if 'time' not in name and 'per_second' not in name}
    for line in read_metrics(directory / 'metrics.jsonl')
  ]
