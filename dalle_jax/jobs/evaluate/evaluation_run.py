"""Evaluate a trained model: measure its metrics; print a table; write a JSON file, a page and drawings."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import scipy
from jax.sharding import Mesh

import dalle_jax
from dalle_jax import bundle, sharding
from dalle_jax.config import Config, DataConfig
from dalle_jax.data import fingerprints, registry
from dalle_jax.data.registry import Dataset
from dalle_jax.evaluation import judge
from dalle_jax.evaluation.figures import Figure
from dalle_jax.files import check_out, is_not_finite, reason, write_json, write_whole
from dalle_jax.hosts import say
from dalle_jax.jobs import cached_codes, seen_records
from dalle_jax.jobs.evaluate import evaluation_page, features, metrics
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.evaluate.measured import Measured
from dalle_jax.jobs.ranker import load as load_ranker
from dalle_jax.jobs.report_blocks import Block
from dalle_jax.reporting import curves

DRAWINGS = ('blurred_fid',)  # metrics that get a drawing of their own
SCHEMA = 3  # version of the JSON file's format, described in docs/evaluation.md


def evaluate(settings: EvaluationSettings, mesh: Mesh | None = None, overwrite: bool = False) -> dict[str, Any]:
  """Measures the metrics, prints a table, writes the output files, and returns the contents of the JSON file.

  Args:
    settings: what to measure, and how.
    mesh: the device mesh; None uses all devices.
    overwrite: whether files of an earlier evaluation are replaced.

  Raises:
    ValueError: the model, the data or a setting cannot be used. Settings are checked before any metric is measured;
      images and captions are checked when a metric reads them.
  """
  model_path = Path(settings.model).absolute()
  info = bundle.check(model_path, needs=('dvae',))
  config = bundle.read_config(model_path)
  chosen = metrics.choose(settings, config, info['parts'])
  out = Path(settings.out) if settings.out else model_path.parent / f'evaluation_{settings.split}.json'
  if jax.process_index() == 0:
    pages = (out.with_suffix('.html'), *(_drawing_path(out, name) for name in DRAWINGS if name in chosen))
    for path in (out, *pages):
      check_out(path, overwrite)
  if settings.reranker:
    bundle.check(Path(settings.reranker), needs=('reranker',), flag='--reranker')
  mesh = mesh or sharding.make_mesh()
  ranker = load_ranker(settings.reranker, mesh) if settings.reranker else None
  extractor = features.load_extractor(settings, mesh, ranker)
  data, data_dir = _data_config(settings, config.data, model_path)
  dataset, seen_note = _new_records(
    config, registry.prepare(data, data_dir, needs_captions=config.reads_captions), settings, model_path, info
  )
  if dataset.codes:
    chosen = metrics.without_pictures(chosen, settings)
  if dataset.account:
    say(f'data: {data.source}\n{dataset.account}')
  count = settings.count(len(dataset.open(settings.split)))
  metrics.check_count(chosen, count)
  loaded = bundle.load(model_path, mesh, needs=('dvae',))
  for facts in dataset.codes:
    cached_codes.check_settings(config, facts)
  cached_codes.check_dvae(dataset.codes, loaded.params['dvae'], f'--model={settings.model}')
  cache = features.Cache(Path(settings.cache or model_path.parent / 'features').absolute())
  measured = Measured(
    settings, loaded, dataset, count, mesh, extractor=extractor, ranker=ranker, cache=cache,
    grouped='diversity' in chosen,
  )  # fmt: skip
  metrics.check_count(chosen, measured.count)
  figures, seconds = _measure(chosen, measured)
  result = {
    'model': info.get('params', ''),
    'data': dataset.fingerprint,
    'seen': _seen(dataset, settings.split, seen_note),
    'metrics': chosen,
    'figures': {name: _as_json(figure) for name, figure in figures.items()},
    'seconds': seconds,
    **_circumstances(settings, measured),
  }
  shown = evaluation_page.blocks(measured)
  if jax.process_index() == 0:
    _write(out, result, figures, settings, shown)
  return result


def _seen(dataset: Dataset, split: str, note: str) -> dict[str, Any]:
  """How many records of the split also occur in training, and a sentence about it."""
  overlap = dataset.overlaps.get(split)
  return {**(dataclasses.asdict(overlap) if overlap else {}), 'note': note}


def _circumstances(settings: EvaluationSettings, measured: Measured) -> dict[str, Any]:
  """The entries of the JSON file that say how the figures were measured."""
  mesh, ranker, extractor = measured.mesh, measured.ranker, measured.extractor
  return {
    'schema': SCHEMA,
    'reranker': ranker.info.get('params', '') if ranker else None,
    'features': {'name': extractor.name, 'fingerprint': extractor.fingerprint} if extractor else None,
    'split': settings.split,
    'num_images': measured.count,
    'num_unreadable': len(measured.source.left_out),
    'seed': settings.seed,
    'sampling': dataclasses.asdict(settings.sampling(measured.config.sampling, measured.count)),
    'settings': json.loads(json.dumps(dataclasses.asdict(settings))),
    'versions': _versions(),
    'devices': f'{mesh.size} x {mesh.devices.flat[0].device_kind}',
  }


def _data_config(settings: EvaluationSettings, model_data: DataConfig, model_path: Path) -> tuple[DataConfig, Path]:
  """The configuration of the data to measure on, and the directory for generated data sets.

  Args:
    settings: the settings of the evaluation; its `source`, `data` and `max_image_pixels`, if set, replace the
      model's. With `data` alone, the source is found from what the path holds.
    model_data: the data configuration of the model.
    model_path: the model directory; by default, generated data sets are kept beside it.
  """
  changes: dict[str, Any] = {
    'source': settings.source or ('auto' if settings.data else None), 'path': settings.data,
    'skip_list': '' if settings.data else None, 'max_image_pixels': settings.max_image_pixels,
  }  # fmt: skip
  config = dataclasses.replace(model_data, **{name: value for name, value in changes.items() if value is not None})
  return config, Path(settings.data_dir or model_data.data_dir or model_path.parent / 'data').absolute()


def _new_records(
  config: Config, dataset: Dataset, settings: EvaluationSettings, model_path: Path, info: Mapping[str, Any]
) -> tuple[Dataset, str]:
  """The data set without records that also occur in the model's training data, and a sentence about them.

  Args:
    config: the model's configuration.
    dataset: the data set to measure on.
    settings: the settings of the evaluation.
    model_path: the model directory.
    info: the contents of its bundle.json.

  Raises:
    ValueError: all records of the split occur in training.
  """
  training, trained_on = dataset, info.get('data', '')
  if not fingerprints.same(trained_on, dataset.fingerprint) and (settings.source or settings.data):
    try:
      training = registry.prepare(
        *_data_config(dataclasses.replace(settings, source=None, data=None), config.data, model_path),
        needs_captions=config.reads_captions,
      )
    except (OSError, ValueError) as error:
      note = f'Not compared with the training data, which cannot be read: {reason(error, model_path)}'
      say(note)
      return dataset, note
  remark = (
    ''
    if fingerprints.same(trained_on, training.fingerprint)
    else (' The training data have changed since the model was trained, so it may have seen other records too.')
  )
  if settings.split == 'train' and training is dataset:
    return dataset, f'The split is the training data.{remark}'
  directory = Path(settings.cache or model_path.parent / seen_records.DIRECTORY).absolute()
  remaining = seen_records.leave_out(config, dataset, training, directory)
  if settings.split in dataset.splits and settings.split not in remaining.splits:
    raise ValueError(
      f'All {remaining.overlaps[settings.split].total:,} records of the split {settings.split!r} (--split) also occur '
      'in training, so nothing is left to measure. Use another split or other data (--data).'
    )
  overlap = remaining.overlaps.get(settings.split)
  return remaining, (overlap.describe() if overlap else '') + remark


def _measure(chosen: list[str], measured: Measured) -> tuple[dict[str, Figure], dict[str, float]]:
  """The figures, and the seconds that each metric took.

  Metrics share images and features. The time to make these counts for the first metric that needs them.
  """
  figures: dict[str, Figure] = {}
  seconds = {}
  for name in chosen:
    start = time.monotonic()
    figures |= metrics.METRICS[name].measure(measured)
    seconds[name] = round(time.monotonic() - start, 2)
  return figures, seconds


def _as_json(figure: Figure) -> dict[str, Any]:
  """A figure as a JSON object; values that are not finite become null, because JSON cannot represent them.

  Only shares have the key 'interval'.
  """
  values = {name: value.item() if isinstance(value, np.generic) else value for name, value in figure._asdict().items()}
  interval = values.pop('interval')
  if interval is not None:
    values['interval'] = list(interval)
  return {name: None if is_not_finite(value) else value for name, value in values.items()}


def _versions() -> dict[str, str]:
  versions = {'dalle_jax': dalle_jax.__version__, 'jax': jax.__version__, 'jaxlib': jaxlib.__version__}
  return versions | {'numpy': np.__version__, 'scipy': scipy.__version__, 'judge': str(judge.VERSION)}


def _write(
  out: Path, result: dict[str, Any], figures: Mapping[str, Figure], settings: EvaluationSettings, shown: list[Block]
) -> None:
  """Writes the JSON file, the drawings and the page; prints the table and the paths."""
  write_json(out, result)
  written = [out]
  drawings = _drawings(figures)
  for name, svg in drawings.items():
    path = _drawing_path(out, name)
    write_whole(path, svg.encode())
    written.append(path)
  evaluation_page.write(out.with_suffix('.html'), result, figures, drawings, shown)
  written.append(out.with_suffix('.html'))
  print_table(figures, settings.split)
  for path in written:
    say(str(path))


def _drawing_path(out: Path, name: str) -> Path:
  return out.with_name(f'{out.stem}_{name}.svg')


def _drawings(figures: Mapping[str, Figure]) -> dict[str, str]:
  """SVG drawings by name: blurred_fid by radius (figure 9a) if it was measured at several radii."""
  points = {name: figure.value for name, figure in figures.items() if name.startswith('blurred_fid/')}
  if len(points) < 2:
    return {}
  extractor = next(iter(points)).split('/')[1]
  radii = np.array([float(name.rsplit('/', 1)[1]) for name in points])
  order = np.argsort(radii)
  series = {extractor: (radii[order], np.array(list(points.values()))[order])}
  title = f'Fréchet distance ({extractor}) of blurred images'
  return {DRAWINGS[0]: curves.curve_svg(series, title, 'distance', x_label='blur radius in pixels')}


def print_table(figures: Mapping[str, Figure], split: str) -> None:
  """Prints one line for each figure: name, value, standard error or 95% interval, and count."""
  width = max(len(name) for name in figures)
  print(f'{"split " + split:<{width}}  {"value":>12}  {"+- stderr, or 95% interval":<26} {"count":>9}')
  for name, (value, stderr, count, interval) in figures.items():
    error = '' if stderr is None else f'+- {stderr:.2g}'
    if interval is not None:
      error = f'{interval[0]:.4g} to {interval[1]:.4g}'
    print(f'{name:<{width}}  {value:12.5g}  {error:<26} {count:>9,}')
