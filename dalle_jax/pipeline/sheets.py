"""Pictures on the way: sheets of reconstructions and of samples, drawn by hooks of the training loop."""

import functools
from pathlib import Path

import jax
from jax.sharding import Mesh

from dalle_jax.config import Config
from dalle_jax.data.registry import Dataset
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.evaluation import reconstruction
from dalle_jax.factory import make_dvae, make_prior
from dalle_jax.pipeline import examples
from dalle_jax.reporting import sheets
from dalle_jax.sampling.generate import Sampler, encode_prompts
from dalle_jax.training import vector_quantizer
from dalle_jax.training.state import TrainState, all_params

NUM_RECONSTRUCTIONS = 32  # pictures on a reconstruction sheet


class ReconstructionHook:
  """Writes WORKDIR/dvae/sheets/STEP.png: held-out pictures above their reconstructions."""

  def __init__(self, config: Config, dataset: Dataset, mesh: Mesh, directory: Path):
    self._config, self._dataset, self._mesh, self._directory = config, dataset, mesh, directory

  def __call__(self, state: TrainState, step: int) -> None:
    split = 'validation' if 'validation' in self._dataset.splits else 'train'
    images = examples.first_images(self._config, self._dataset, split, NUM_RECONSTRUCTIONS)
    params = vector_quantizer.merged(all_params(state, ema=True))
    _, pictures = reconstruction.reconstruct(make_dvae(self._config.dvae), params, images, self._mesh, len(images))
    _save(sheets.reconstruction_sheet(images, pictures), self._directory, step)


class SampleHook:
  """Writes WORKDIR/prior/sheets/STEP.png: images drawn for captions that are not trained on."""

  def __init__(self, config: Config, dataset: Dataset, tokenizer: Tokenizer, mesh: Mesh, directory: Path):
    self._config, self._dataset, self._tokenizer = config, dataset, tokenizer
    self._mesh, self._directory = mesh, directory

  @functools.cached_property
  def _sampler(self) -> Sampler:
    prior = make_prior(self._config, self._tokenizer.vocab_size)
    return Sampler(prior, make_dvae(self._config.dvae), self._mesh, self._config.sampling)

  @functools.cached_property
  def _prompts(self) -> list[str]:
    split = list(examples.sheet_splits(self._dataset))[-1]
    return examples.spread(examples.captions(self._dataset, split), self._config.evaluation.sheet_prompts)

  def __call__(self, state: TrainState, step: int) -> None:
    params = all_params(state, ema=True)
    images = draw_sheet(self._config, self._tokenizer, self._sampler, params, self._prompts)
    _save(sheets.sample_sheet(self._prompts, images), self._directory, step)


def draw_sheet(config: Config, tokenizer: Tokenizer, sampler: Sampler, params: dict, prompts: list[str]):
  """Images uint8 [P, N, H, W, 3] with N = config.evaluation.images_per_prompt for each of P prompts."""
  count = config.evaluation.images_per_prompt
  text = encode_prompts(tokenizer, prompts, config.tokenizer.text_length, truncate=True)
  images = sampler(params, text.repeat(count, axis=0), seed=config.seed)
  return images.reshape(len(prompts), count, *images.shape[1:])


def _save(picture, directory: Path, step: int) -> None:
  if jax.process_index() == 0:
    sheets.save_png(picture, directory / f'{step:08d}.png', None)
