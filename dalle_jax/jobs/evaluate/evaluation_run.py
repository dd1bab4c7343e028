"""Measuring a trained model: data and model in, a table, a JSON file and drawings out."""

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

SCHEMA = 2  # of the JSON file; docs/evaluation.md says what is in it


def evaluate(settings: EvaluationSettings, mesh: Mesh | None = None) -> dict[str, Any]:
  """Measures, prints a table, writes a JSON file, and returns what it holds.

  Args:
    settings: what to measure.
    mesh: of the devices; None: all there are.

  Raises:
    ValueError: the model, the data or a setting cannot be used. Found before any work, but for what the data hold.
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
  found, seconds = _measure(chosen, measured)
  result = {
    'schema': SCHEMA,
    'model': info.get('params', ''),
    'data': dataset.fingerprint,
    'reranker': ranker.info.get('params', '') if ranker else None,
    'features': {'name': extractor.name, 'fingerprint': extractor.fingerprint} if extractor else None,
    'split': settings.split,
    'num_images': count,
    'seed': settings.seed,
    'metrics': chosen,
    'figures': {name: _ready(figure) for name, figure in found.items()},
    'sampling': dataclasses.asdict(settings.sampling(config.sampling, count)),
    'settings': json.loads(json.dumps(dataclasses.asdict(settings))),
    'versions': _versions(),
    'devices': f'{mesh.size} x {mesh.devices.flat[0].device_kind}',
    'seconds': seconds,
  }
  shown = evaluation_page.blocks(measured)
  if jax.process_index() == 0:
    _write(out, result, found, settings, shown)
  return result


def _data_config(settings: EvaluationSettings, own: DataConfig, model_path: Path) -> tuple[DataConfig, Path]:
  """The model's own data, or those that the flags name, and where generated ones are kept."""
  changes = {'source': settings.source, 'path': settings.data}
  config = dataclasses.replace(own, **{name: value for name, value in changes.items() if value is not None})
  return config, Path(settings.data_dir or own.data_dir or model_path.parent / 'data').absolute()


def _measure(chosen: list[str], measured: Measured) -> tuple[dict[str, Figure], dict[str, float]]:
  """The figures, and the seconds each metric took, with what it was the first to need."""
  found: dict[str, Figure] = {}
  seconds = {}
  for name in chosen:
    start = time.monotonic()
    found |= metrics.METRICS[name].measure(measured)
    seconds[name] = round(time.monotonic() - start, 2)
  return found, seconds


def _ready(figure: Figure) -> dict[str, Any]:
  """A figure for JSON, which has no word for what is not finite."""
  values = {name: value.item() if isinstance(value, np.generic) else value for name, value in figure._asdict().items()}
  return {name: None if is_not_finite(value) else value for name, value in values.items()}


def _versions() -> dict[str, str]:
  versions = {'dalle_jax': dalle_jax.__version__, 'jax': jax.__version__, 'jaxlib': jaxlib.__version__}
  return versions | {'numpy': np.__version__, 'scipy': scipy.__version__}


def _write(
  out: Path, result: dict[str, Any], found: Mapping[str, Figure], settings: EvaluationSettings, shown: list[Block]
) -> None:
  write_json(out, result)
  written = [out]
  drawings = _drawings(found)
  for name, svg in drawings.items():
    path = out.with_name(f'{out.stem}_{name}.svg')
    write_whole(path, svg.encode())
    written.append(path)
  evaluation_page.write(out.with_suffix('.html'), result, found, drawings, shown)
  written.append(out.with_suffix('.html'))
  print_table(found, settings.split)
  for path in written:
    say(str(path))


def _drawings(found: Mapping[str, Figure]) -> dict[str, str]:
  """SVGs by name: the sweep of radii (figure 9a), where it was measured at several."""
  points = {name: figure.value for name, figure in found.items() if name.startswith('blurred_fid/')}
  if len(points) < 2:
    return {}
  kind = next(iter(points)).split('/')[1]
  radii = np.array([float(name.rsplit('/', 1)[1]) for name in points])
  order = np.argsort(radii)
  series = {kind: (radii[order], np.array(list(points.values()))[order])}
  title = f'Fréchet distance ({kind}) of blurred pictures'
  return {'blurred_fid': curves.curve_svg(series, title, 'distance', x_label='radius of the blur in pixels')}


def print_table(found: Mapping[str, Figure], split: str) -> None:
  """One line for each figure: name, value, standard error, and over how many it is."""
  width = max(len(name) for name in found)
  print(f'{"split " + split:<{width}}  {"value":>12}     {"stderr":<9} {"count":>9}')
  for name, (value, stderr, count) in found.items():
    error = '' if stderr is None else f'+- {stderr:.2g}'
    print(f'{name:<{width}}  {value:12.5g}  {error:<12} {count:>9,}')
