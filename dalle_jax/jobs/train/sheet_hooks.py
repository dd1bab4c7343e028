"""Hooks that write sheets of images during training."""

import functools
from pathlib import Path

import jax
from PIL import Image

from dalle_jax.evaluation import reconstruction
from dalle_jax.factory import make_dvae
from dalle_jax.jobs import examples
from dalle_jax.jobs.sheet_samples import draw_sheet
from dalle_jax.jobs.train.experiment import Experiment
from dalle_jax.jobs.train.picture_data import PictureExperiment
from dalle_jax.reporting import sheets
from dalle_jax.sampling.sampler import Sampler, make_sampler
from dalle_jax.stages import Stage
from dalle_jax.training import vector_quantizer
from dalle_jax.training.state import TrainState, all_params

NUM_RECONSTRUCTIONS = 32  # images on a reconstruction sheet


class ReconstructionHook:
  """Write DIRECTORY/STEP.png: held-out images above their reconstructions."""

  def __init__(self, experiment: PictureExperiment, directory: Path):
    self._experiment, self._directory = experiment, directory

  def __call__(self, state: TrainState, step: int) -> None:
    config, dataset = self._experiment.config, self._experiment.dataset
    images = examples.first_images(config, dataset, examples.held_out_split(dataset), NUM_RECONSTRUCTIONS)
    params = vector_quantizer.merged(all_params(state, ema=True))
    dvae, mesh = make_dvae(config.dvae), self._experiment.mesh
    _, reconstructed = reconstruction.reconstruct(dvae, params, images, mesh, len(images))
    _save(sheets.reconstruction_sheet(images, reconstructed), self._directory, step)


class SampleHook:
  """Write DIRECTORY/STEP.png: images sampled for held-out captions, or without captions if the model reads none."""

  def __init__(self, experiment: PictureExperiment, directory: Path):
    self._experiment, self._directory = experiment, directory

  @functools.cached_property
  def _sampler(self) -> Sampler:
    config = self._experiment.config
    return make_sampler(config, self._experiment.tokenizer, self._experiment.mesh, config.sampling)

  @functools.cached_property
  def _prompts(self) -> list[str]:
    if self._experiment.tokenizer is None:
      return []
    config, dataset = self._experiment.config, self._experiment.dataset
    split = list(examples.sheet_splits(dataset))[-1]
    return examples.spread(examples.captions(dataset, split), config.evaluation.sheet_prompts)

  def __call__(self, state: TrainState, step: int) -> None:
    params = all_params(state, ema=True)
    config, tokenizer = self._experiment.config, self._experiment.tokenizer
    samples = draw_sheet(config, tokenizer, self._sampler, params, self._prompts)
    _save(sheets.lay_out(self._prompts, samples.images), self._directory, step)


HOOKS: dict[str, type[ReconstructionHook] | type[SampleHook]] = {  # keys: the names in `Stage.sheets`
  'reconstructions': ReconstructionHook,
  'samples': SampleHook,
}


def make_hooks(experiment: Experiment, stage: Stage) -> list[ReconstructionHook | SampleHook]:
  """Make the hooks of a stage. They write to WORKDIR/STAGE/sheets; several hooks each get a subdirectory of it."""
  if experiment.config.models_text:
    return []
  directory = experiment.space.path / stage.name / 'sheets'
  if len(stage.sheets) == 1:
    return [HOOKS[stage.sheets[0]](experiment, directory)]
  return [HOOKS[name](experiment, directory / name) for name in stage.sheets]


def _save(sheet: Image.Image, directory: Path, step: int) -> None:
  if jax.process_index() == 0:
    sheets.save_png(sheet, directory / f'{step:08d}.png', None)
