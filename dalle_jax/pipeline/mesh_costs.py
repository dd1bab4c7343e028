"""What is said at the start of a run about a mesh that does not divide what it trains."""

from collections.abc import Iterator

from jax.sharding import Mesh

from dalle_jax.config import Config, TrainingConfig
from dalle_jax.pipeline.workspace import say
from dalle_jax.training import mesh_costs
from dalle_jax.training.tasks import Task
from dalle_jax.training.tasks.dvae import DvaeTask
from dalle_jax.training.tasks.joint import JointTask
from dalle_jax.training.tasks.prior import PriorTask
from dalle_jax.training.tasks.reranker import RerankerTask
from dalle_jax.training.tasks.sequence import make_sequence_task


def say_costs(config: Config, mesh: Mesh) -> None:
  """Says what the sizes of the mesh cost, of every stage that will be trained; nothing where nothing is lost."""
  for task, training in _stages(config):
    for line in mesh_costs.lines(task, training, config, mesh):
      say(line)


def _stages(config: Config) -> Iterator[tuple[Task, TrainingConfig]]:
  vocab_size = config.tokenizer.vocab_size  # the tokenizer, perhaps not learnt yet, has no more
  if config.task == 'reranker':
    yield RerankerTask(config, vocab_size), config.reranker_training
    return
  if config.task == 'joint':
    yield JointTask(config, vocab_size), config.joint_training
    return
  if not config.models_text and not config.dvae.pretrained:
    yield DvaeTask(config.dvae, config.data.image_size), config.dvae_training
  if config.task == 'sequence' and config.model.kind != 'ngram':
    yield make_sequence_task(config, vocab_size), config.sequence_training
  elif config.task == 'all':
    yield PriorTask(config, vocab_size), config.prior_training
