import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.training.optimizer import decay_mask, make_optimizer, make_schedule


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
