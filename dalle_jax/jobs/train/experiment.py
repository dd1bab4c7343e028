"""The state that all stages and the report of a run share: configuration, directory, mesh, data and tokenizer."""

import dataclasses
from typing import Generic, TypeVar

from jax.sharding import Mesh

from dalle_jax.bundle import Bundle
from dalle_jax.config import Config
from dalle_jax.data.text.text_tokenizer import TextTokenizer
from dalle_jax.data.text.tokenizer import Tokenizer
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.training.stage_tasks import make_task
from dalle_jax.training.tasks import Task

Data = TypeVar('Data')
DataTokenizer = TypeVar('DataTokenizer', Tokenizer | None, TextTokenizer)


@dataclasses.dataclass(frozen=True)
class Experiment(Generic[Data, DataTokenizer]):
  """A run with its data and tokenizer loaded.

  Attributes:
    config: The experiment's configuration.
    space: The work directory.
    mesh: The device mesh.
    dataset: The data; see `picture_data.PictureExperiment` and `text_data.TextExperiment`.
    tokenizer: The tokenizer; None if no stage reads text.
  """

  config: Config
  space: Workspace
  mesh: Mesh
  dataset: Data
  tokenizer: DataTokenizer

  @property
  def text_vocab_size(self) -> int:
    """The size of the tokenizer's vocabulary; 0 without a tokenizer."""
    return self.tokenizer.vocab_size if self.tokenizer else 0

  def task(self, stage: str) -> Task:
    """Makes the task of a stage."""
    return make_task(self.config, stage, self.text_vocab_size)

  def bundle(self, params: dict) -> Bundle:
    """Returns the trained parts as a `Bundle`, as `bundle.load` does.

    Args:
      params: The parameters of each part, on the mesh.
    """
    return Bundle(self.config, self.tokenizer, params, {})
