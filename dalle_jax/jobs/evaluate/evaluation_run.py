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
from dalle_jax.config import DataConfig
from dalle_jax.data import registry
from dalle_jax.evaluation.figures import Figure
from dalle_jax.files import check_out, is_not_finite, write_json, write_whole
from dalle_jax.hosts import say
from dalle_jax.jobs.evaluate import evaluation_page, features, metrics
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.evaluate.measured import Measured
from dalle_jax.jobs.ranker import load as load_ranker
from dalle_jax.jobs.report_blocks import Block
from dalle_jax.reporting import curves

SCHEMA = 2  # version of the JSON file's format, described in docs/evaluation.md


def evaluate(settings: EvaluationSettings, mesh: Mesh | None = None) -> dict[str, Any]:
  """Measures the metrics, prints a table, writes the output files, and returns the contents of the JSON file.

  Args:
    settings: what to measure, and how.
    mesh: the device mesh; None uses all devices.

  Raises:
    ValueError: the model, the data or a setting cannot be used. Settings are checked before any metric is measured;
      images and captions are checked when a metric reads them.
  """
  model_path = Path(settings.model).absolute()
  info = bundle.check(model_path, needs=('dvae',))
  config = bundle.read_config(model_path)
  chosen = metrics.choose(settings, config, info['parts'])
  out = Path(settings.out) if settings.out else model_path.parent / f'evaluation_{settings.split}.json'
  check_out(out)
  if settings.reranker:
    bundle.check(Path(settings.reranker), needs=('reranker',), flag='--reranker')
  mesh = mesh or sharding.make_mesh()
  ranker = load_ranker(settings.reranker, mesh) if settings.reranker else None
  extractor = features.load_extractor(settings, mesh, ranker)
  data, data_dir = _data_config(settings, config.data, model_path)
  dataset = registry.prepare(data, data_dir)
  count = settings.count(len(dataset.open(settings.split)))
  metrics.check_count(chosen, count)
  loaded = bundle.load(model_path, mesh, needs=('dvae',))
  cache = features.Cache(Path(settings.cache or model_path.parent / 'features').absolute())
  measured = Measured(
    settings, loaded, dataset, count, mesh, extractor=extractor, ranker=ranker, cache=cache,
    grouped='diversity' in chosen,
  )  # fmt: skip
  metrics.check_count(chosen, measured.count)
  figures, seconds = _measure(chosen, measured)
  result = {
    'schema': SCHEMA,
    'model': info.get('params', ''),
    'data': dataset.fingerprint,
    'reranker': ranker.info.get('params', '') if ranker else None,
    'features': {'name': extractor.name, 'fingerprint': extractor.fingerprint} if extractor else None,
    'split': settings.split,
    'num_images': measured.count,
    'num_unreadable': len(measured.source.left_out),
    'seed': settings.seed,
    'metrics': chosen,
    'figures': {name: _as_json(figure) for name, figure in figures.items()},
    'sampling': dataclasses.asdict(settings.sampling(config.sampling, count)),
    'settings': json.loads(json.dumps(dataclasses.asdict(settings))),
    'versions': _versions(),
    'devices': f'{mesh.size} x {mesh.devices.flat[0].device_kind}',
    'seconds': seconds,
  }
  shown = evaluation_page.blocks(measured)
  if jax.process_index() == 0:
    _write(out, result, figures, settings, shown)
  return result


def _data_config(settings: EvaluationSettings, model_data: DataConfig, model_path: Path) -> tuple[DataConfig, Path]:
  """The configuration of the data to measure on, and the directory for generated data sets.

  Args:
    settings: the settings of the evaluation; its `source` and `data`, if set, replace the model's.
    model_data: the data configuration of the model.
    model_path: the model directory; by default, generated data sets are kept beside it.
  """
  changes: dict[str, Any] = {'source': settings.source, 'path': settings.data}
  config = dataclasses.replace(model_data, **{name: value for name, value in changes.items() if value is not None})
  return config, Path(settings.data_dir or model_data.data_dir or model_path.parent / 'data').absolute()


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
  """A figure as a JSON object; values that are not finite become null, because JSON cannot represent them."""
  values = {name: value.item() if isinstance(value, np.generic) else value for name, value in figure._asdict().items()}
  return {name: None if is_not_finite(value) else value for name, value in values.items()}


def _versions() -> dict[str, str]:
  versions = {'dalle_jax': dalle_jax.__version__, 'jax': jax.__version__, 'jaxlib': jaxlib.__version__}
  return versions | {'numpy': np.__version__, 'scipy': scipy.__version__}


def _write(
  out: Path, result: dict[str, Any], figures: Mapping[str, Figure], settings: EvaluationSettings, shown: list[Block]
) -> None:
  """Writes the JSON file, the drawings and the page; prints the table and the paths."""
  write_json(out, result)
  written = [out]
  drawings = _drawings(figures)
  for name, svg in drawings.items():
    path = out.with_name(f'{out.stem}_{name}.svg')
    write_whole(path, svg.encode())
    written.append(path)
  evaluation_page.write(out.with_suffix('.html'), result, figures, drawings, shown)
  written.append(out.with_suffix('.html'))
  print_table(figures, settings.split)
  for path in written:
    say(str(path))


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
  return {'blurred_fid': curves.curve_svg(series, title, 'distance', x_label='blur radius in pixels')}


def print_table(figures: Mapping[str, Figure], split: str) -> None:
  """Prints one line for each figure: name, value, standard error and count."""
  width = max(len(name) for name in figures)
  print(f'{"split " + split:<{width}}  {"value":>12}     {"stderr":<9} {"count":>9}')
  for name, (value, stderr, count) in figures.items():
    error = '' if stderr is None else f'+- {stderr:.2g}'
    print(f'{name:<{width}}  {value:12.5g}  {error:<12} {count:>9,}')
