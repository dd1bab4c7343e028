"""Measuring a trained model: data and model in, a table and a JSON file out."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import dalle_jax
from dalle_jax import bundle, sharding
from dalle_jax.bundle import Bundle
from dalle_jax.config import DataConfig, MeshConfig
from dalle_jax.data import registry
from dalle_jax.data.pipeline import Source
from dalle_jax.evaluation import elbo
from dalle_jax.pipeline import examples
from dalle_jax.pipeline.outputs import check_out
from dalle_jax.training.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is asked for; the fields are the flags of `python -m dalle_jax.evaluate`.

  Raises:
    ValueError: a value that cannot be.
  """

  model: str
  metrics: tuple[str, ...] = ('elbo',)
  split: str = 'validation'
  num_images: int = 1024
  batch_size: int = 32
  seed: int = 0
  source: str | None = None
  data: str | None = None
  data_dir: str | None = None
  out: str | None = None

  def __post_init__(self) -> None:
    unknown = [name for name in self.metrics if name not in METRICS]
    if unknown or not self.metrics:
      given = ','.join(self.metrics)
      raise ValueError(f'--metrics is {given!r}; it must list one or more of {", ".join(METRICS)}.')
    if self.num_images < 0:
      raise ValueError(f'--num_images is {self.num_images}; it must be 0 (all) or more.')
    if self.batch_size < 1:
      raise ValueError(f'--batch_size is {self.batch_size}; it must be at least 1.')
    if not 0 <= self.seed < 2**31:
      raise ValueError(f'--seed is {self.seed}; it must lie in [0, 2^31).')


def evaluate(settings: Settings) -> dict[str, Any]:
  """Measures, prints a table, writes a JSON file, and returns what it holds.

  Raises:
    ValueError: the model, the data or a setting cannot be used.
  """
  model_path = Path(settings.model).absolute()
  bundle.check(model_path, needs=('dvae',))
  out = Path(settings.out) if settings.out else model_path.parent / f'evaluation_{settings.split}.json'
  check_out(out)
  mesh = sharding.make_mesh(MeshConfig())
  data_config, data_dir = _data_config(settings, model_path)
  dataset = registry.prepare(data_config, data_dir)
  source = dataset.open(settings.split)
  loaded = bundle.load(model_path, mesh, needs=('dvae',))
  count = min(settings.num_images or len(source), len(source))
  figures: dict[str, float] = {}
  for name in settings.metrics:
    figures |= METRICS[name](settings, loaded, source, count, mesh)
  facts = {
    'model': loaded.info.get('params', ''), 'data': dataset.fingerprint, 'split': settings.split, 'num_images': count,
    'seed': settings.seed, 'dalle_jax_version': dalle_jax.__version__, 'jax_version': jax.__version__,
  }  # fmt: skip
  result = {**facts, 'figures': figures}
  if jax.process_index() == 0:
    out.write_text(json.dumps(result, indent=2) + '\n')
    print_table(figures, settings.split, count)
    print(out, flush=True)
  return result


def _data_config(settings: Settings, model_path: Path) -> tuple[DataConfig, Path]:
  """The model's own data, or those that the flags name, and where generated ones are kept."""
  own = bundle.read_config(model_path).data
  changes = {'source': settings.source, 'path': settings.data}
  config = dataclasses.replace(own, **{name: value for name, value in changes.items() if value is not None})
  return config, Path(settings.data_dir or own.data_dir or model_path.parent / 'data').absolute()


def measure_elbo(settings: Settings, loaded: Bundle, source: Source, count: int, mesh: Mesh) -> dict[str, float]:
  """Figures of `evaluation.elbo`, as 'elbo/...'."""
  config = loaded.config
  with Progress('elbo', count, 'image', enabled=jax.process_index() == 0) as progress:
    found = elbo.measure(
      loaded.dvae,
      loaded.prior if 'prior' in loaded.params else None,
      config.dvae.min_log_scale,
      loaded.params,
      examples.batches(config, loaded.tokenizer, source, count, settings.batch_size, mesh),
      mesh,
      settings.seed,
      progress.update,
    )
  num_dims = 3 * config.data.image_size**2
  figures = elbo.summarize(found, num_dims, config.image_length, config.dvae.kl_weight)
  return {f'elbo/{name}': value for name, value in figures.items()}


METRICS: dict[str, Callable[[Settings, Bundle, Source, int, Mesh], dict[str, float]]] = {'elbo': measure_elbo}


def print_table(figures: dict[str, float], split: str, count: int) -> None:
  """One line for each figure, with its standard error where it has one."""
  width = max(len(name) for name in figures)
  print(f'{count} pictures of the split {split}; mean and standard error over pictures')
  for name, value in figures.items():
    if not name.endswith('_stderr'):
      error = figures.get(f'{name}_stderr')
      print(f'{name:<{width}}  {value:12.5g}' + (f'  +- {error:.2g}' if error is not None else ''))
