"""Pictures on the way: sheets of reconstructions and of samples, drawn by hooks of the training loop."""

import functools
from pathlib import Path

import jax
from jax.sharding import Mesh

from dalle_jax.config import Config
from dalle_jax.data.registry import Dataset
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.evaluation import reconstruction
from dalle_jax.factory import make_dvae
from dalle_jax.jobs import examples
from dalle_jax.jobs.sheet_samples import draw_sheet
from dalle_jax.reporting import sheets
from dalle_jax.reporting.sheets import lay_out
from dalle_jax.sampling.sampler import Sampler, make_sampler
from dalle_jax.training import vector_quantizer
from dalle_jax.training.state import TrainState, all_params

NUM_RECONSTRUCTIONS = 32  # pictures on a reconstruction sheet


class ReconstructionHook:
  """Writes WORKDIR/dvae/sheets/STEP.png: held-out pictures above their reconstructions."""

  def __init__(self, config: Config, dataset: Dataset, mesh: Mesh, directory: Path):
    self._config, self._dataset, self._mesh, self._directory = config, dataset, mesh, directory

  def __call__(self, state: TrainState, step: int) -> None:
    split = examples.held_out_split(self._dataset)
    images = examples.first_images(self._config, self._dataset, split, NUM_RECONSTRUCTIONS)
    params = vector_quantizer.merged(all_params(state, ema=True))
    _, pictures = reconstruction.reconstruct(make_dvae(self._config.dvae), params, images, self._mesh, len(images))
    _save(sheets.reconstruction_sheet(images, pictures), self._directory, step)


class SampleHook:
  """Writes WORKDIR/STAGE/sheets/STEP.png: images drawn for captions that are not trained on, or without a caption."""

  def __init__(self, config: Config, dataset: Dataset, tokenizer: Tokenizer | None, mesh: Mesh, directory: Path):
    self._config, self._dataset, self._tokenizer = config, dataset, tokenizer
    self._mesh, self._directory = mesh, directory

  @functools.cached_property
  def _sampler(self) -> Sampler:
    return make_sampler(self._config, self._tokenizer, self._mesh, self._config.sampling)

  @functools.cached_property
  def _prompts(self) -> list[str]:
    if self._tokenizer is None:
      return []
    split = list(examples.sheet_splits(self._dataset))[-1]
    return examples.spread(examples.captions(self._dataset, split), self._config.evaluation.sheet_prompts)

  def __call__(self, state: TrainState, step: int) -> None:
    params = all_params(state, ema=True)
    drawn = draw_sheet(self._config, self._tokenizer, self._sampler, params, self._prompts)
    _save(lay_out(self._prompts, drawn.images), self._directory, step)


def _save(picture, directory: Path, step: int) -> None:
  if jax.process_index() == 0:
    sheets.save_png(picture, directory / f'{step:08d}.png', None)
