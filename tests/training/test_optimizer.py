import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.config import Config, TrainingConfig
from dalle_jax.training.optimizer import decay_mask, learning_rate_at, make_optimizer, make_schedule
from dalle_jax.training.tasks.prior import PriorTask


def test_cosine_schedule_values(make_config):
  config = make_config(num_steps=110, warmup_steps=10, learning_rate=0.4, final_learning_rate=0.1, schedule='cosine')
  schedule = make_schedule(config)
  expected = {0: 0.0, 5: 0.2, 10: 0.4, 35: 0.1 + 0.3 * (1 + np.sqrt(0.5)) / 2, 60: 0.25, 110: 0.1, 500: 0.1}
  for step, value in expected.items():
    np.testing.assert_allclose(schedule(step), value, rtol=1e-5, atol=1e-8)


def test_constant_schedule_values(make_config):
  schedule = make_schedule(make_config(warmup_steps=4, learning_rate=0.4))
  np.testing.assert_allclose([schedule(s) for s in (0, 1, 4, 100)], [0, 0.1, 0.4, 0.4], rtol=1e-6)
  assert make_schedule(make_config(warmup_steps=0, learning_rate=0.4))(0) == 0.4


def test_a_run_shorter_than_its_warmup_has_a_schedule(make_config):
  schedule = make_schedule(make_config(num_steps=2, warmup_steps=10, learning_rate=1.0, schedule='cosine'))
  np.testing.assert_allclose([schedule(s) for s in (0, 1, 2)], [0, 0.1, 0.2], rtol=1e-6)


def test_the_cosine_may_end_before_training(make_config):
  # The dVAE's (appendix A.2): from 1e-4 to 1.25e-6 over 1,200,000 updates of 3,000,000, then flat.
  schedule = make_schedule(make_config(
    num_steps=3_000_000, schedule='cosine', schedule_steps=1_200_000, warmup_steps=0, learning_rate=1e-4,
    final_learning_rate=1.25e-6,
  ))  # fmt: skip
  np.testing.assert_allclose(
    [schedule(s) for s in (0, 600_000, 1_200_000, 2_900_000)], [1e-4, 5.0625e-5, 1.25e-6, 1.25e-6], rtol=1e-4
  )


def test_halving_at_given_steps(make_config):
  config = make_config(schedule='steps', halving_steps=(10, 20), warmup_steps=4, learning_rate=0.8)
  schedule = make_schedule(config)
  np.testing.assert_allclose([schedule(s) for s in (2, 4, 9, 10, 19, 20, 99)], [0.4, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2])
  assert learning_rate_at(config, (), jnp.asarray(19)) == pytest.approx(0.4)


def test_halving_at_plateaus_by_hand(make_config):
  config = make_config(
    schedule='plateau', plateau_window=2, plateau_patience=2, plateau_tolerance=0.1, max_halvings=2, warmup_steps=0,
    learning_rate=0.8, clip_norm=0.0,
  )  # fmt: skip
  tx, params = make_optimizer(config), {'a': jnp.zeros(1)}
  state, rates = tx.init(params), []
  # Window means 4, 2, then 1.9 and 1.95, which are no tenth better than 2: the rate is halved after the second of them,
  # and again after two more, and then no further.
  for step, loss in enumerate([5.0, 3.0, 2.0, 2.0, 1.8, 2.0, 1.9, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]):
    _, state = tx.update(params, state, params, value=jnp.asarray(loss))
    rates.append(float(learning_rate_at(config, state, jnp.asarray(step))))
  np.testing.assert_allclose(rates, 7 * [0.8] + 4 * [0.4] + 5 * [0.2], rtol=1e-6)


def test_the_second_moment_is_clipped_where_it_is_used(make_config):
  params, grads = {'a': jnp.zeros(3)}, {'a': jnp.array([1.0, 2.0, 100.0])}
  steps = {}
  for clip in (0.0, 5.0):
    config = make_config(second_moment_clip=clip, learning_rate=0.1, clip_norm=0.0, b1=0.5, b2=0.9)
    tx = make_optimizer(config)
    state = tx.init(params)
    for _ in range(3):
      updates, state = tx.update(grads, state, params)
    steps[clip] = np.asarray(updates['a'])
  np.testing.assert_allclose(steps[0.0], -0.1, rtol=1e-5)
  np.testing.assert_allclose(steps[5.0], [-0.1, -0.1, -0.1 * 100 / np.sqrt(5)], rtol=1e-5)


PARAMS = {
  'layers': {'kernel': jnp.ones((2, 3, 3)), 'scale': jnp.ones((2, 3)), 'bias': jnp.ones((2, 3))},
  'tokens': {'embedding': jnp.ones((5, 3))},
}


def test_only_kernels_decay_whatever_their_rank(make_config):
  config = make_config(weight_decay=0.5, learning_rate=0.1)
  tx = make_optimizer(config)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
  np.testing.assert_allclose(updates['layers']['kernel'], -0.1 * 0.5, rtol=1e-6)
  for leaf in (updates['layers']['scale'], updates['layers']['bias'], updates['tokens']['embedding']):
    np.testing.assert_array_equal(leaf, 0)


def test_the_mask_sees_through_boxes():
  boxed = jax.tree.map(lambda x: nn.LogicallyPartitioned(x, names=(None,) * x.ndim), PARAMS)
  assert jax.tree.leaves(decay_mask(boxed)) == jax.tree.leaves(decay_mask(PARAMS)) == [False, True, False, False]


@pytest.mark.parametrize(('clip_norm', 'expected'), [(1.0, 1.0), (0.0, 10.0), (100.0, 10.0)])
def test_clipping_by_the_global_norm(make_config, clip_norm, expected):
  # The first moment after one step is (1 - b1) times the clipped gradient.
  tx = make_optimizer(make_config(clip_norm=clip_norm, b1=0.0))
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([6.0]), 'b': jnp.array([8.0])}
  _, state = tx.update(grads, tx.init(params), params)
  moments = [
    leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0] if '.mu' in jax.tree_util.keystr(path)
  ]
  np.testing.assert_allclose(np.linalg.norm(np.concatenate(moments)), expected, rtol=1e-5)


def test_muon_moves_a_matrix_by_an_orthogonal_one(make_config):
  rng = np.random.default_rng(0)
  # 2 layers of 6 -> query, key and value of 2 heads of 3, and back; and another one which is no block's.
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
  for moved, slope in pairs:
    left, _, right = np.linalg.svd(slope)
    turned = -left.T @ moved @ right.T / 0.1  # diagonal in the gradient's own directions
    # Newton-Schulz brings the singular values near 1, not to it, and may leave the smallest behind.
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=0.02)
    assert np.all((np.diag(turned)[:-1] > 0.5) & (np.diag(turned)[:-1] < 1.4))
  np.testing.assert_allclose(step['head'], -0.01 * np.sign(gradient['head']), rtol=1e-4)  # AdamW's first step


def test_muon_follows_the_schedule_in_proportion(make_config):
  params = {'mlp_in': {'kernel': jnp.eye(4)}}
  config = make_config(optimizer='muon', warmup_steps=4, learning_rate=0.01, muon_learning_rate=0.1)
  tx = make_optimizer(config)
  state, sizes = tx.init(params), []
  for _ in range(6):
    updates, state = tx.update(params, state, params)
    sizes.append(float(jnp.linalg.norm(updates['mlp_in']['kernel'])))
  np.testing.assert_allclose(np.array(sizes) / sizes[-1], [0, 0.25, 0.5, 0.75, 1, 1], atol=1e-6)


def test_muon_decays_matrices_too(make_config):
  params = {'mlp_in': {'kernel': jnp.ones((2, 2))}}
  config = make_config(optimizer='muon', weight_decay=0.5, muon_learning_rate=0.1)
  tx = make_optimizer(config)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates['mlp_in']['kernel'], -0.1 * 0.5, rtol=1e-6)


def test_muon_takes_every_kernel_of_both_models_blocks():
  config = Config.from_dict({
    'data': {'image_size': 32}, 'dvae': {'hidden_size': 8, 'num_groups': 2},
    'prior': {'num_layers': 3, 'num_heads': 2, 'embed_dim': 8, 'attention_pattern': ('row', 'full'), 'mlp': 'swiglu'},
  })  # fmt: skip
  shapes = jax.eval_shape(PriorTask(config, 300).init, jax.random.key(0))
  tx = make_optimizer(TrainingConfig(optimizer='muon'))
  state = jax.eval_shape(tx.init, shapes)
  momentum = state[1].inner_states['matrix'].inner_state[0].mu
  kept = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(momentum)}
  kernels = {
    jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    if 'kernel' in jax.tree_util.keystr(path) and re.search('block|rest', jax.tree_util.keystr(path))
  }  # fmt: skip
  assert kept == kernels
  assert (
    len(kept) == 3 * 5 + 2 * 4 * 4 + 3
  )  # of a period of two and one layer more, of 8 blocks, and of 3 with another width
