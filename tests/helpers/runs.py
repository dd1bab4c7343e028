"""What the work directory of a run says that training has learnt."""

from dalle_jax.training.metrics_log import read_metrics


def learnt(directory):
  """The metrics of a stage without what the clock says."""
  return [
    {name: value for name, value in line.items() if 'time' not in name and 'per_second' not in name}
    for line in read_metrics(directory / 'metrics.jsonl')
  ]
