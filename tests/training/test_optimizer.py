import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dalle_jax.config import Config, TrainingConfig
from dalle_jax.training.optimizer import decay_mask, make_optimizer, scale_by_clipped_adam
from dalle_jax.training.tasks.prior import PriorTask

PARAMS = {
  'layers': {'kernel': jnp.ones((2, 3, 3)), 'scale': jnp.ones((2, 3)), 'bias': jnp.ones((2, 3))},
  'tokens': {'embedding': jnp.ones((5, 3))},
}


def test_only_kernels_decay_regardless_of_rank(make_config):
  config = make_config(weight_decay=0.5, learning_rate=0.1)
  tx = make_optimizer(config)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
  np.testing.assert_allclose(updates['layers']['kernel'], -0.1 * 0.5, rtol=1e-6)
  for leaf in (updates['layers']['scale'], updates['layers']['bias'], updates['tokens']['embedding']):
    np.testing.assert_array_equal(leaf, 0)


def test_the_decay_mask_of_boxed_parameters_equals_that_of_unboxed_ones():
  boxed = jax.tree.map(lambda x: nn.LogicallyPartitioned(x, names=(None,) * x.ndim), PARAMS)
  assert jax.tree.leaves(decay_mask(boxed)) == jax.tree.leaves(decay_mask(PARAMS)) == [False, True, False, False]


def test_kernels_of_both_models_decay_and_other_parameters_do_not():
  config = Config.from_dict({
    'data': {'image_size': 32}, 'dvae': {'hidden_size': 8, 'num_groups': 2},
    'prior': {'num_layers': 2, 'num_heads': 2, 'embed_dim': 8},
  })  # fmt: skip
  shapes = jax.eval_shape(PriorTask(config, 300).init, jax.random.key(0))
  decays = {}
  for path, decay in jax.tree_util.tree_leaves_with_path(decay_mask(shapes)):
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    decays['/'.join(names)] = decay
  assert decays['prior/embeddings/text_kernel'] and decays['prior/embeddings/image_kernel']
  assert decays['dvae/code/kernel'] and decays['dvae/encoder/output/kernel']
  for name, decay in decays.items():
    last = name.split('/')[-1]
    assert decay == ('kernel' in last), name
    if not decay:
      assert last in ('bias', 'scale') or last.endswith(('embedding', 'position')), name


@pytest.mark.parametrize('largest', [0.05, 1.0, np.inf])
def test_the_second_moment_is_clipped_before_use(largest):
  b1, b2, eps = 0.9, 0.96, 1e-8
  rng = np.random.default_rng(0)
  gradients = rng.normal(size=(12, 3)) * np.array([0.1, 1.0, 10.0])
  tx = scale_by_clipped_adam(b1, b2, eps, largest)
  unclipped = optax.scale_by_adam(b1, b2, eps)
  params = {'a': jnp.zeros(3)}
  state, unclipped_state = tx.init(params), unclipped.init(params)
  mean, variance = np.zeros(3), np.zeros(3)
  for count, gradient in enumerate(gradients, 1):
    mean = b1 * mean + (1 - b1) * gradient
    variance = np.minimum(b2 * variance + (1 - b2) * gradient**2, largest)
    expected = mean / (1 - b1**count) / (np.sqrt(variance / (1 - b2**count)) + eps)
    updates, state = tx.update({'a': jnp.asarray(gradient, jnp.float32)}, state)
    np.testing.assert_allclose(updates['a'], expected, rtol=1e-4)
    unclipped_updates, unclipped_state = unclipped.update({'a': jnp.asarray(gradient, jnp.float32)}, unclipped_state)
    if largest == np.inf:
      np.testing.assert_array_equal(updates['a'], unclipped_updates['a'])
  np.testing.assert_allclose(state.nu['a'], variance, rtol=1e-5)
  assert jax.tree.structure(state) == jax.tree.structure(unclipped_state)


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_second_moment_clip_leaves_the_rest_of_adamw_unchanged(make_config, optimizer):
  config = {'optimizer': optimizer, 'weight_decay': 0.5, 'learning_rate': 0.1, 'clip_norm': 0.0, 'b2': 0.5}
  grads = {'tokens': {'kernel': jnp.array([1.0, 100.0]), 'bias': jnp.array([1.0, 100.0])}}
  params = jax.tree.map(jnp.ones_like, grads)

  def first_update(clip):
    tx = make_optimizer(make_config(second_moment_clip=clip, **config))
    return tx.update(grads, tx.init(params), params)[0]['tokens']

  np.testing.assert_allclose(first_update(0.0)['bias'], [-0.1, -0.1], rtol=1e-5)
  np.testing.assert_allclose(first_update(1e9)['kernel'], [-0.15, -0.15], rtol=1e-5)
  # The second moment 5000 is clipped to 5, and bias correction makes it 10.
  np.testing.assert_allclose(first_update(5.0)['bias'], [-0.1, -10 / np.sqrt(10)], rtol=1e-5)
  np.testing.assert_allclose(first_update(5.0)['kernel'], [-0.15, -0.05 - 10 / np.sqrt(10)], rtol=1e-5)


@pytest.mark.parametrize(('clip_norm', 'expected'), [(1.0, 1.0), (0.0, 10.0), (100.0, 10.0)])
def test_gradients_are_clipped_by_their_global_norm(make_config, clip_norm, expected):
  # The first moment after one step is (1 - b1) times the clipped gradient.
  tx = make_optimizer(make_config(clip_norm=clip_norm, b1=0.0))
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([6.0]), 'b': jnp.array([8.0])}
  _, state = tx.update(grads, tx.init(params), params)
  moments = [
    leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0] if '.mu' in jax.tree_util.keystr(path)
  ]
  np.testing.assert_allclose(np.linalg.norm(np.concatenate(moments)), expected, rtol=1e-5)


def test_muon_updates_are_orthogonal_matrices(make_config):
  rng = np.random.default_rng(0)
  # Two layers: width 6 -> query, key and value of 2 heads of width 3, and back. 'head' is not a matrix of a block.
  shapes = {'qkv': (2, 6, 3, 2, 3), 'out': (2, 2, 3, 6), 'head': (6, 6)}
  params = {name: {'kernel': jnp.zeros(shape)} for name, shape in shapes.items()}
  grads = {name: {'kernel': jnp.asarray(rng.normal(size=shape), jnp.float32)} for name, shape in shapes.items()}
  tx = make_optimizer(make_config(optimizer='muon', learning_rate=0.01, muon_learning_rate=0.1, clip_norm=0.0))
  updates, _ = tx.update(grads, tx.init(params), params)
  step = {name: np.asarray(leaf['kernel'], np.float64) for name, leaf in updates.items()}
  gradient = {name: np.asarray(leaf['kernel'], np.float64) for name, leaf in grads.items()}
  pairs = [(step['qkv'][i, :, j].reshape(6, 6), gradient['qkv'][i, :, j].reshape(6, 6))
           for i in range(2) for j in range(3)]  # fmt: skip
  pairs += [(step['out'][i].reshape(6, 6), gradient['out'][i].reshape(6, 6)) for i in range(2)]
  for update, grad in pairs:
    left, _, right = np.linalg.svd(grad)
    rotated = -left.T @ update @ right.T / 0.1  # diagonal in the basis of the gradient's singular vectors
    # Newton-Schulz iterations bring the singular values near 1, not exactly to 1; the smallest may stay far away.
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=0.02)
    assert np.all((np.diag(rotated)[:-1] > 0.5) & (np.diag(rotated)[:-1] < 1.4))
  np.testing.assert_allclose(step['head'], -0.01 * np.sign(gradient['head']), rtol=1e-4)  # the first step of AdamW


def test_the_muon_learning_rate_is_proportional_to_the_schedule(make_config):
  params = {'mlp_in': {'kernel': jnp.eye(4)}}
  config = make_config(optimizer='muon', warmup_steps=4, learning_rate=0.01, muon_learning_rate=0.1)
  tx = make_optimizer(config)
  state, sizes = tx.init(params), []
  for _ in range(6):
    updates, state = tx.update(params, state, params)
    sizes.append(float(jnp.linalg.norm(updates['mlp_in']['kernel'])))
  np.testing.assert_allclose(np.array(sizes) / sizes[-1], [0, 0.25, 0.5, 0.75, 1, 1], atol=1e-6)


def test_muon_applies_weight_decay(make_config):
  params = {'mlp_in': {'kernel': jnp.ones((2, 2))}}
  config = make_config(optimizer='muon', weight_decay=0.5, muon_learning_rate=0.1)
  tx = make_optimizer(config)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates['mlp_in']['kernel'], -0.1 * 0.5, rtol=1e-6)


def test_muon_handles_every_kernel_in_the_blocks_of_both_models():
  config = Config.from_dict({
    'data': {'image_size': 32}, 'dvae': {'hidden_size': 8, 'num_groups': 2},
    'prior': {'num_layers': 3, 'num_heads': 2, 'embed_dim': 8, 'attention_pattern': ('row', 'full'), 'mlp': 'swiglu'},
  })  # fmt: skip
  shapes = jax.eval_shape(PriorTask(config, 300).init, jax.random.key(0))
  tx = make_optimizer(TrainingConfig(optimizer='muon'))
  state = jax.eval_shape(tx.init, shapes)
  momentum = state[1].inner_states['matrix'].inner_state[0].mu
  muon_kernels = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(momentum)}
  block_kernels = {
    jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    if 'kernel' in jax.tree_util.keystr(path) and re.search('block|rest', jax.tree_util.keystr(path))
  }  # fmt: skip
  assert muon_kernels == block_kernels
  # The prior: a period of 2 layers and a third layer. The dVAE: 8 blocks, 3 of which change the width.
  assert len(muon_kernels) == 3 * 5 + 2 * 4 * 4 + 3
