"""What all stages and the report of one run share."""

import dataclasses

from jax.sharding import Mesh

from dalle_jax.bundle import Bundle
from dalle_jax.config import Config
from dalle_jax.data.registry import Dataset
from dalle_jax.data.text_tokenizer import TextTokenizer
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.training.stage_tasks import make_task
from dalle_jax.training.tasks import Task


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A run whose data and tokenizer are ready.

  Attributes:
    config: The experiment's configuration.
    space: Its work directory.
    mesh: The devices.
    dataset: The captioned pictures, or the windows of text as a data set with one open split each.
    tokenizer: The tokenizer; None if nothing reads text.
  """

  config: Config
  space: Workspace
  mesh: Mesh
  dataset: Dataset
  tokenizer: Tokenizer | TextTokenizer | None

  @property
  def text_vocab_size(self) -> int:
    """The number of the tokenizer's ids; 0 without a tokenizer."""
    return self.tokenizer.vocab_size if self.tokenizer else 0

  def task(self, stage: str) -> Task:
    """The task of a stage."""
    return make_task(self.config, stage, self.text_vocab_size)

  def bundle(self, params: dict) -> Bundle:
    """The trained parts as a loaded model.

    Args:
      params: The parameters of each part, on the mesh.
    """
    return Bundle(self.config, self.tokenizer, params, {})
