"""Trains and samples tiny models on one device and on the given meshes; prints the differences as JSON.

    compare_meshes.py STAGES MESH...

STAGES is a comma-separated list and a MESH is written as 2x2x2. The dVAE and the prior are compared on every mesh, the
other stages on 2x2x2 only. Run by `test_meshes.py` in a separate process, because JAX fixes the number of devices when
it starts.
"""

import dataclasses
import functools
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

from dalle_jax import sharding
from dalle_jax.config import Config, MeshConfig, SamplingConfig, TrainingConfig
from dalle_jax.config.models import SEQUENCE_KINDS
from dalle_jax.factory import make_dvae, make_prior
from dalle_jax.models import sparse_attention
from dalle_jax.models.attention import Pattern
from dalle_jax.sampling.sampler import Sampler
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import all_params, create_state
from dalle_jax.training.step import make_train_step
from dalle_jax.training.tasks.dvae import DvaeTask
from dalle_jax.training.tasks.joint import JointTask
from dalle_jax.training.tasks.prior import PriorTask
from dalle_jax.training.tasks.reranker import RerankerTask
from dalle_jax.training.tasks.sequence import SequenceTask

NUM_STEPS, BATCH_SIZE, TEXT_VOCAB_SIZE = 3, 16, 24
CONFIG = Config.from_dict({
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
  'tokenizer': {'text_length': 4},
  'dvae': {
    'image_vocab_size': 16, 'hidden_size': 32, 'decoder_input_size': 8, 'num_groups': 2, 'blocks_per_group': 1,
    'patch_size': 2, 'kl_warmup_steps': 2,
  },
  'prior': {'num_layers': 2, 'num_heads': 8, 'embed_dim': 32, 'attention_pattern': ('row', 'column')},
})  # fmt: skip
# A number of heads that two devices do not divide.
UNEVEN = dataclasses.replace(CONFIG, prior=dataclasses.replace(CONFIG.prior, num_heads=5, embed_dim=20))
RERANKER = Config.from_dict({
  'task': 'reranker',
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
  'tokenizer': {'text_length': 4},
  'reranker': {
    'embed_dim': 16, 'stem': 'conv', 'image_num_layers': 1, 'image_width': 32, 'image_num_heads': 8,
    'text_num_layers': 1, 'text_width': 32, 'text_num_heads': 8,
  },
})  # fmt: skip
TEXT = Config.from_dict(
  {
    'task': 'sequence',
    'data': {'source': 'text'},
    'tokenizer': {'kind': 'bytes'},
    'model': {'length': 8, 'num_layers': 2, 'num_heads': 8, 'embed_dim': 32, 'hidden_size': 16, 'position': 'rotary'},
  }
)


def sequence_task(kind: str) -> SequenceTask:
  model = dataclasses.replace(TEXT.model, kind=kind)
  return SequenceTask(dataclasses.replace(TEXT, model=model), TEXT_VOCAB_SIZE)


# A large epsilon keeps Adam from amplifying rounding errors of tiny gradients to full steps.
TRAINING = {'batch_size': BATCH_SIZE, 'learning_rate': 0.03, 'schedule': 'constant', 'warmup_steps': 0, 'eps': 1e-2}
STAGES = {
  'dvae': (DvaeTask(CONFIG.dvae, 8), TrainingConfig(**TRAINING)),
  'prior': (PriorTask(CONFIG, TEXT_VOCAB_SIZE), TrainingConfig(**TRAINING, accumulation_steps=2, optimizer='muon')),
  'vq': (DvaeTask(dataclasses.replace(CONFIG.dvae, bottleneck='vq'), 8), TrainingConfig(**TRAINING)),
  'joint': (JointTask(UNEVEN, TEXT_VOCAB_SIZE), TrainingConfig(**TRAINING)),
  'reranker': (RerankerTask(RERANKER, TEXT_VOCAB_SIZE), TrainingConfig(**TRAINING)),
  **{kind: (sequence_task(kind), TrainingConfig(**TRAINING)) for kind in SEQUENCE_KINDS if kind != 'ngram'},
}
ALWAYS = ('dvae', 'prior')
ALL_AXES = '2x2x2'  # the only mesh for the other stages, whose layers the dVAE and the prior cover already


def make_mesh(name: str) -> jax.sharding.Mesh:
  """The mesh of data x fsdp x tensor, or dcn_data x data x fsdp x tensor."""
  sizes = [int(size) for size in name.split('x')]
  sizes = [1] * (len(sharding.AXES) - len(sizes)) + sizes
  config = MeshConfig(**dict(zip(sharding.AXES, sizes, strict=True)))
  return sharding.make_mesh(config, jax.devices()[: np.prod(sizes)])


def batches():
  """Yields the same random batches for every mesh."""
  for step in range(NUM_STEPS):
    rng = np.random.default_rng([0, step])
    image = rng.integers(0, 256, (BATCH_SIZE, 8, 8, 3), np.uint8)
    text = rng.integers(0, TEXT_VOCAB_SIZE, (BATCH_SIZE, 11)).astype(np.int32)
    yield {'image': image, 'text': text[:, :3], 'wrong': text[:, 2::-1], 'tokens': text[:, 3:]}


@functools.cache
def shapes(task) -> dict:
  """The shapes of a task's parameters. The meshes share them."""
  return nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))


def initial(task) -> dict:
  """Random parameters from NumPy, because compiling the modules' initialisers would take most of the time."""
  rng = np.random.default_rng(2)
  return jax.tree.map(lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32), shapes(task))


def remember_gradients() -> optax.GradientTransformation:
  """An optimizer stage that stores the gradients in its state and returns them unchanged."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, state, params=None: (grads, grads)
  )


def train(name: str, mesh: jax.sharding.Mesh) -> dict:
  """Losses, first gradients, state and parameters after a few steps, and the share of each parameter per device."""
  task, config = STAGES[name]
  losses, gradients, start = [], None, initial(task)
  start.pop('codebook', None)  # a random codebook would not match the moving averages that define it
  if name == 'reranker':
    # If all scores are nearly equal, their gradients almost cancel and rounding dominates. With parameters as small as
    # those of the other stages, even reordering the examples on one device changes the gradients by 2e-5.
    start = jax.tree.map(lambda leaf: 3 * leaf, start)
    start[name]['logit_scale'] = start[name]['logit_scale'] / 3 + 2
  with sharding.use_mesh(mesh):
    tx = optax.chain(remember_gradients(), make_optimizer(config))
    state = create_state(task, tx, mesh, seed=0, use_ema=True, initial=start)
    # Start after the KL warm-up: before it, the prior of the joint stage has no gradient.
    state = state.replace(step=state.step + CONFIG.dvae.kl_warmup_steps)
    shares = {path: share(leaf) for path, leaf in traverse_util.flatten_dict(state.params, sep='/').items()}
    step = make_train_step(task, tx, config, mesh, seed=0)
    for batch in batches():
      state, metrics = step(state, sharding.to_global(batch, mesh))
      losses.append(float(metrics['loss']))
      gradients = jax.device_get(state.opt_state[0]) if gradients is None else gradients
  return {
    'losses': losses, 'gradients': gradients, 'state': jax.device_get(state), 'shares': shares,
    'params': all_params(state, ema=False),
  }  # fmt: skip


def share(leaf: jax.Array) -> float:
  """The share of an array that one device holds."""
  return leaf.addressable_shards[0].data.size / leaf.size


def sample(params: dict, mesh: jax.sharding.Mesh) -> np.ndarray:
  """Codes of images that are sampled with guidance."""
  # The sampler rounds a batch size up to a multiple of the batch shards.
  settings = SamplingConfig(batch_size=6, top_p=0.9, guidance_scale=2.0, guidance_ramp=0.5)
  sampler = Sampler(make_prior(CONFIG, TEXT_VOCAB_SIZE), make_dvae(CONFIG.dvae), mesh, settings)
  text = np.random.default_rng(1).integers(0, TEXT_VOCAB_SIZE, (7, 3)).astype(np.int32)
  return sampler.draw(params, text, seed=5).codes


def placed(params: dict, like: dict) -> dict:
  """Moves parameters to the shardings of `like`."""
  return jax.tree.map(lambda leaf, other: jax.device_put(np.asarray(leaf), other.sharding), params, like)


def attend(mesh: jax.sharding.Mesh) -> list[np.ndarray]:
  """The output and gradients of sparse attention, with examples and heads split over the mesh."""
  pattern = Pattern('conv', 3, 18, 5)
  rng = np.random.default_rng(3)
  qkv = [rng.normal(size=(8, pattern.length, 8, 4)).astype(np.float32) for _ in range(3)]
  spec = jax.sharding.PartitionSpec(sharding.RULES['batch'], None, sharding.RULES['heads'])
  placed = [jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)) for x in qkv]

  def loss(*qkv):
    out = sparse_attention.attend_in_blocks(pattern, *qkv)
    return jnp.sum(jnp.sin(out)), out

  gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*placed)
  return jax.device_get([out, *gradients])


def largest_error(tree: object, expected: object) -> float:
  """The largest error of all leaves, relative to the largest entry of each leaf."""
  pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
  return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)) for a, b in pairs if np.size(a))


def errors(tree: dict, expected: dict) -> dict[str, float]:
  """The largest error of every leaf, relative to its largest entry."""
  actual, leaves = (traverse_util.flatten_dict(t, sep='/') for t in (tree, expected))
  assert all(leaf.any() for leaf in leaves.values()), 'some gradient is 0, so that the comparison says nothing'
  return {name: float(np.abs(actual[name] - leaf).max() / np.abs(leaf).max()) for name, leaf in leaves.items()}


def main() -> None:
  assert jax.device_count() == 8, jax.devices()
  on_all_axes, *meshes = sys.argv[1:]
  others = on_all_axes.split(',')
  wanted = {name: list(dict.fromkeys([*ALWAYS, *(others if name == ALL_AXES else ())])) for name in meshes}
  on_one_device = {name: train(name, make_mesh('1x1x1')) for name in {*ALWAYS, *itertools.chain(*wanted.values())}}
  codes = sample(on_one_device['prior']['params'], make_mesh('1x1x1'))
  attended = attend(make_mesh('1x1x1'))
  report = {}
  for name, stages in wanted.items():
    mesh = make_mesh(name)
    on_mesh = {stage: train(stage, mesh) for stage in stages}
    params = placed(on_one_device['prior']['params'], on_mesh['prior']['params'])
    report[name] = {
      stage: {
        'losses': on_mesh[stage]['losses'],
        'expected_losses': on_one_device[stage]['losses'],
        'gradient_errors': errors(on_mesh[stage]['gradients'], on_one_device[stage]['gradients']),
        'state_error': largest_error(on_mesh[stage]['state'], on_one_device[stage]['state']),
        'shares': on_mesh[stage]['shares'],
      }
      for stage in stages
    } | {
      'attention_error': largest_error(attend(mesh), attended),
      'wrong_codes': int(np.sum(sample(params, mesh) != codes)),
    }
  report['num_codes'] = len(np.unique(codes))
  print(json.dumps(report))


if __name__ == '__main__':
  main()
