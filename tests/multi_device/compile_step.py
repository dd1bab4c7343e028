"""Compiles the prior's training step, including the dVAE encoder, for eight devices; prints its arrays as JSON.

Run by `test_compiled_step.py` in a separate process, because JAX fixes the number of devices when it starts.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp

from dalle_jax import sharding
from dalle_jax.config import Config, MeshConfig, TrainingConfig
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import abstract_state
from dalle_jax.training.step import make_train_step
from dalle_jax.training.tasks.prior import PriorTask

# Dimensions that identify an array all have different sizes.
BATCH_SIZE, IMAGE_SIZE, TEXT_LENGTH, TEXT_VOCAB_SIZE, IMAGE_VOCAB_SIZE = 16, 32, 16, 56, 104
CONFIG = Config.from_dict({
  'data': {'source': 'folder', 'path': 'unused', 'image_size': IMAGE_SIZE},
  'tokenizer': {'text_length': TEXT_LENGTH},
  'dvae': {
    'image_vocab_size': IMAGE_VOCAB_SIZE, 'hidden_size': 32, 'decoder_input_size': 8, 'num_groups': 2,
    'blocks_per_group': 1, 'patch_size': 2,
  },
  'prior': {'num_layers': 2, 'num_heads': 4, 'embed_dim': 32, 'attention_pattern': ('row', 'column')},
})  # fmt: skip
INSTRUCTION = re.compile(r'\s*(?:ROOT )?%?\S+ = (.*?) ([a-z][a-z-]+)\(')


def compiled(mesh: jax.sharding.Mesh) -> str:
  """The HLO text of the compiled training step."""
  task, training = PriorTask(CONFIG, TEXT_VOCAB_SIZE), TrainingConfig(batch_size=BATCH_SIZE)
  rows = sharding.batch_sharding(mesh)
  batch = {
    'image': jax.ShapeDtypeStruct((BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.uint8, sharding=rows),
    'text': jax.ShapeDtypeStruct((BATCH_SIZE, TEXT_LENGTH - 1), jnp.int32, sharding=rows),
  }
  with sharding.use_mesh(mesh):
    tx = make_optimizer(training)
    state = abstract_state(task, tx, mesh, use_ema=True)
    return make_train_step(task, tx, training, mesh, seed=0).lower(state, batch).compile().as_text()


def arrays(program: str) -> list[tuple[str, str, list[int]]]:
  """The operation, type and per-device shape of every array that the program computes."""
  results = set()
  for line in program.splitlines():
    if instruction := INSTRUCTION.match(line):
      outputs, operation = instruction.groups()
      results |= {(operation, kind, sizes) for kind, sizes in re.findall(r'\b([a-z]+\d+)\[([\d,]+)\]', outputs)}
  return [(operation, kind, [int(size) for size in sizes.split(',')]) for operation, kind, sizes in sorted(results)]


def main() -> None:
  assert jax.device_count() == 8, jax.devices()
  sizes = dict(zip(sharding.AXES, map(int, sys.argv[1].split('x')), strict=True))
  mesh = sharding.make_mesh(MeshConfig(**sizes))
  print(json.dumps({
    'arrays': arrays(compiled(mesh)),
    'rows': BATCH_SIZE // sharding.batch_divisor(mesh),
    'vocabularies': [[TEXT_VOCAB_SIZE, TEXT_LENGTH], [IMAGE_VOCAB_SIZE, CONFIG.image_length]],
    'tensor': mesh.shape['tensor'],
    'image': [IMAGE_SIZE, IMAGE_SIZE, 3],
  }))  # fmt: skip


if __name__ == '__main__':
  main()
