"""The curves of a run are drawn from the metrics of its stages."""

import json

from dalle_jax import stages
from dalle_jax.reporting import curves as curves_module
from dalle_jax.reporting.run_curves import COMMON, run_curves
from dalle_jax.training.stage_tasks import task_module


def write_metrics(path, *lines):
  path.parent.mkdir(parents=True)
  path.write_text(''.join(json.dumps({'time': 0.0, **values}) + '\n' for values in lines), encoding='utf-8')


def test_only_curves_with_data_are_drawn(tmp_path):
  assert run_curves(tmp_path) == []
  write_metrics(
    tmp_path / 'dvae' / 'metrics.jsonl',
    {'step': 1, 'loss': 2.0, 'temperature': None, 'unknown': 1.0},
    {'step': 2, 'loss': 1.0, 'temperature': None},
    {'step': 2, 'eval/psnr_hard': 20.0},
  )
  drawn = dict(run_curves(tmp_path))
  assert list(drawn) == ['dVAE: loss', 'dVAE: PSNR of the mean squared error']
  assert 'relaxed codes' not in drawn['dVAE: PSNR of the mean squared error']
  write_metrics(tmp_path / 'prior' / 'metrics.jsonl', {'step': 1, 'eval/image_bits_per_dim': 0.5, 'loss': 1.0})
  assert [title for title, _ in run_curves(tmp_path)][2:] == [
    'Prior: loss',
    'Prior: bits of the image tokens per dimension of the image',
  ]


def test_every_declared_curve_is_drawn_if_all_metrics_have_data(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(curves_module, 'curve_svg', lambda *arguments: asked.append(arguments) or '<svg/>')
  curves = {stage: (*task_module(stage).CURVES, *COMMON) for stage in stages.names()}
  for stage, stage_curves in curves.items():
    metrics = {metric: 1.0 for curve in stage_curves for metric in curve.series.values()}
    write_metrics(tmp_path / stage / 'metrics.jsonl', {'step': 1, **metrics}, {'step': 2, **metrics})
  drawn = run_curves(tmp_path)
  assert len(drawn) == sum(map(len, curves.values()))
  assert len({title for title, _ in drawn}) == len(drawn)
  expected = [curve for stage_curves in curves.values() for curve in stage_curves]
  for curve, (series, title, label, log) in zip(expected, asked, strict=True):
    assert title.endswith(f': {curve.title}') and (label, log) == (curve.y_label, curve.log)
    assert set(series) == set(curve.series) and all(map(curves_module.has_data, series.values()))
