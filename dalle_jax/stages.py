"""The stages of training, one entry for each. Everything that lists stages reads this list.

This module imports nothing from the package, so that the configuration, the command-line programs and the jobs can all
read it.
CONTRIBUTING.md says how to add a task.
"""

import dataclasses
import importlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training.

  Attributes:
    name: The stage's directory under the work directory and its name in seeds. Renaming it changes every result.
    title: What reports call it.
    task: The value of `config.task` for which this stage runs last.
    module: The module that defines the task; `dalle_jax/training/tasks/__init__.py` lists what it must hold.
    model_groups: The configuration groups that describe its model.
    reads: What its batches may hold: 'image', 'text' (ids of captions), 'wrong' (ids of wrong captions) or 'tokens'.
    follows: The stages before it, whose parameters it uses.
    parts: The parts of the model directory after this stage, as pairs (name, 'module:function'). The function makes the
      part's initial parameters from (config, text_vocab_size, ngrams, key).
    sheets: The sheets of images that the stage writes during training: 'reconstructions', 'samples' or both.
    training_group: The configuration group of its training; '' means NAME_training.
    mirrors: Whether `config.data.flip` applies. Stages that read captions must not mirror images, because captions may
      mention left, right or written words.
  """

  name: str
  title: str
  task: str
  module: str
  model_groups: tuple[str, ...]
  reads: tuple[str, ...]
  follows: tuple[str, ...] = ()
  parts: tuple[tuple[str, str], ...] = ()
  sheets: tuple[str, ...] = ()
  training_group: str = ''
  mirrors: bool = False

  def __post_init__(self) -> None:
    if not self.training_group:
      object.__setattr__(self, 'training_group', f'{self.name}_training')


_DVAE = ('dvae', 'dalle_jax.factory:init_dvae')
_PRIOR = ('prior', 'dalle_jax.factory:init_prior')

STAGES: tuple[Stage, ...] = (
  Stage(
    name='dvae', title='dVAE', task='dvae', module='dalle_jax.training.tasks.dvae',
    model_groups=('dvae',), reads=('image',), parts=(_DVAE,), sheets=('reconstructions',), mirrors=True,
  ),
  Stage(
    name='prior', title='Prior', task='all', module='dalle_jax.training.tasks.prior', follows=('dvae',),
    model_groups=('tokenizer', 'prior'), reads=('image', 'text'), parts=(_DVAE, _PRIOR), sheets=('samples',),
  ),
  Stage(
    name='joint', title='dVAE and prior together', task='joint', module='dalle_jax.training.tasks.joint',
    model_groups=('tokenizer', 'dvae', 'prior'), reads=('image', 'text'), parts=(_DVAE, _PRIOR),
    sheets=('reconstructions', 'samples'),
  ),
  Stage(
    name='sequence', title='Sequence model', task='sequence', module='dalle_jax.training.tasks.sequence',
    follows=('dvae',), model_groups=('tokenizer', 'model'), reads=('tokens', 'image', 'text'),
    parts=(_DVAE, ('model', 'dalle_jax.factory:init_sequence_model')), sheets=('samples',),
  ),
  Stage(
    name='reranker', title='Reranker', task='reranker', module='dalle_jax.training.tasks.reranker',
    model_groups=('tokenizer', 'reranker'), reads=('image', 'text', 'wrong'),
    parts=(('reranker', 'dalle_jax.factory:init_reranker'),),
  ),
)  # fmt: skip


def names() -> tuple[str, ...]:
  """The names of all stages."""
  return tuple(stage.name for stage in STAGES)


def tasks() -> tuple[str, ...]:
  """The values of `config.task`."""
  return tuple(stage.task for stage in STAGES)


def find(name: str) -> Stage:
  """The stage with this name. Raises KeyError if there is none."""
  return {stage.name: stage for stage in STAGES}[name]


def of_task(task: str) -> tuple[Stage, ...]:
  """The stages that a value of `config.task` needs, in the order in which they run."""
  (last,) = [stage for stage in STAGES if stage.task == task]
  return (*map(find, last.follows), last)


def training_groups() -> tuple[str, ...]:
  """The training configuration groups of all stages, each once."""
  return tuple(dict.fromkeys(stage.training_group for stage in STAGES))


def part_initializer(part: str) -> Any:
  """The function that makes the parameters of a part of the model directory. Raises KeyError if there is none."""
  path = {name: path for stage in STAGES for name, path in stage.parts}[part]
  module, _, function = path.partition(':')
  return getattr(importlib.import_module(module), function)
