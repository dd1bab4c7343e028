"""Pictures on the way: sheets of reconstructions and of samples, drawn by hooks of the training loop."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from dalle_jax.config import Config, SamplingConfig
from dalle_jax.data.registry import Dataset
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.evaluation import reconstruction
from dalle_jax.factory import make_dvae, make_stream_model
from dalle_jax.jobs import examples
from dalle_jax.reporting import sheets
from dalle_jax.sampling.sampler import Sampler, encode_prompts
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


def make_sampler(config: Config, tokenizer: Tokenizer | None, mesh: Mesh, settings: SamplingConfig) -> Sampler:
  """What draws with the models of a configuration: its prior, or the sequence model that stands in its place."""
  model, part = make_stream_model(config, tokenizer.vocab_size if tokenizer else 0)
  return Sampler(model, make_dvae(config.dvae), mesh, settings, part)


class Drawn(NamedTuple):
  """N images for each of P prompts."""

  text: np.ndarray  # int32 [P, text_length - 1]; [P, 0] without prompts
  codes: np.ndarray  # int32 [P, N, h, w]
  images: np.ndarray  # uint8 [P, N, H, W, 3]


def draw_sheet(
  config: Config, tokenizer: Tokenizer | None, sampler: Sampler, params: dict, prompts: list[str]
) -> Drawn:
  """Draws N = config.evaluation.images_per_prompt images for each of P prompts.

  Without a tokenizer, and so without prompts, P is config.evaluation.sheet_prompts.
  """
  count = config.evaluation.images_per_prompt
  text = np.zeros((config.evaluation.sheet_prompts, 0), np.int32)
  if tokenizer:
    text = encode_prompts(tokenizer, prompts, config.tokenizer.text_length, truncate=True)
  drawn = sampler.draw(params, text.repeat(count, axis=0), seed=config.seed)
  shaped = (found.reshape(len(text), count, *found.shape[1:]) for found in (drawn.codes, drawn.images))
  return Drawn(text, *shaped)


def lay_out(prompts: list[str], images: np.ndarray, right: np.ndarray | None = None) -> Image.Image:
  """A sheet of images [P, N, H, W, 3] under their prompts, or, without prompts, in a grid."""
  if prompts:
    return sheets.sample_sheet(prompts, images, right)
  return sheets.contact_sheet(images.reshape(-1, *images.shape[2:]))


def _save(picture, directory: Path, step: int) -> None:
  if jax.process_index() == 0:
    sheets.save_png(picture, directory / f'{step:08d}.png', None)
