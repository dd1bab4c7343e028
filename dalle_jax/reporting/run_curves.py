"""The curves of a training run: the curves that each stage's task declares, and the curves of the training loop."""

from pathlib import Path

from dalle_jax import stages
from dalle_jax.reporting import curves
from dalle_jax.training.metrics_log import FILE_NAME
from dalle_jax.training.stage_tasks import task_module
from dalle_jax.training.tasks import Curve

# Curves of the training loop's metrics, which all stages have.
COMMON = (
  Curve('learning rate', '', {'learning rate': 'learning_rate'}),
  Curve('speed', 'steps per second', {'speed': 'steps_per_second'}),
  Curve('utilisation', 'model FLOPs, share of the peak', {'utilisation': 'model_flops_utilisation'}),
  Curve(
    'where the time went', 'seconds between log lines',
    {
      'steps': 'time/step', 'waiting for data': 'time/data', 'evaluation': 'time/evaluation',
      'checkpoints': 'time/checkpoint', 'pictures': 'time/pictures',
    },
  ),
)  # fmt: skip


def run_curves(workdir: Path) -> list[tuple[str, str]]:
  """(title, SVG) of each curve of each stage, if the stage's metrics.jsonl in `workdir` has data for it."""
  drawings = []
  for stage in stages.STAGES:
    path = Path(workdir) / stage.name / FILE_NAME
    if not path.exists():
      continue
    metrics = curves.read_metrics(path)
    for curve in (*task_module(stage.name).CURVES, *COMMON):
      series = {label: metrics[metric] for label, metric in curve.series.items() if metric in metrics}
      if any(map(curves.has_data, series.values())):
        title = f'{stage.title}: {curve.title}'
        drawings.append((title, curves.curve_svg(series, title, curve.y_label, curve.log)))
  return drawings
