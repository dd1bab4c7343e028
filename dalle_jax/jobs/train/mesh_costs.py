"""What is said at the start of a run about a mesh that does not divide what it trains."""

from jax.sharding import Mesh

from dalle_jax.config import Config
from dalle_jax.jobs.train.workspace import say
from dalle_jax.training import mesh_costs
from dalle_jax.training.stage_tasks import make_task, stages_of, training_of


def say_costs(config: Config, mesh: Mesh) -> None:
  """Says what the sizes of the mesh cost, of every stage that will be trained; nothing where nothing is lost."""
  for stage in stages_of(config):
    if stage == 'sequence' and config.model.kind == 'ngram':
      continue  # counted, not trained
    task = make_task(config, stage)  # the tokenizer, perhaps not learnt yet, has no more ids
    for line in mesh_costs.lines(task, training_of(config, stage), config, mesh):
      say(line)
