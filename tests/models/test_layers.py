import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.models import layers
from dalle_jax.models.layers import Mlp, Norm, rotate


def _x(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _apply(module, x):
  """The module's output for random parameters, and these parameters."""
  rng = np.random.default_rng(1)
  shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x)['params'])
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
  return np.asarray(module.apply({'params': params}, x)), params


def test_norms_match_a_numpy_reference():
  x = _x(2, 3, 8) + 1
  out, p = _apply(Norm('layernorm', jnp.float32), x)
  centred = x - x.mean(-1, keepdims=True)
  expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']
  np.testing.assert_allclose(out, expected, atol=1e-5)
  out, p = _apply(Norm('rmsnorm', jnp.float32), x)
  np.testing.assert_allclose(out, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p['scale'], atol=1e-5)
  assert set(p) == {'scale'}


def test_mlps_match_a_numpy_reference():
  x = _x(1, 2, 8)
  out, p = _apply(Mlp('quick_gelu', 24, 1.0, 1.0, jnp.float32), x)
  hidden = x @ p['mlp_in']['kernel'] + p['mlp_in']['bias']
  hidden = hidden / (1 + np.exp(-1.702 * hidden))
  np.testing.assert_allclose(out, hidden @ p['mlp_out']['kernel'] + p['mlp_out']['bias'], atol=1e-4)
  out, p = _apply(Mlp('swiglu', 24, 1.0, 1.0, jnp.float32), x)
  gate, value = (x @ p[name]['kernel'] + p[name]['bias'] for name in ('mlp_gate', 'mlp_in'))
  hidden = gate / (1 + np.exp(-gate)) * value
  np.testing.assert_allclose(out, hidden @ p['mlp_out']['kernel'] + p['mlp_out']['bias'], atol=1e-4)


def test_swiglu_has_about_as_many_parameters_as_quick_gelu():
  counts = {}
  for kind in layers.MLPS:
    shapes = jax.eval_shape(Mlp(kind, 4 * 512, 1.0, 1.0, jnp.float32).init, jax.random.key(0), jnp.zeros((1, 1, 512)))
    counts[kind] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert counts['swiglu'] == pytest.approx(counts['quick_gelu'], rel=0.01)


def test_quick_gelu_matches_its_formula():
  np.testing.assert_allclose(
    layers.quick_gelu(jnp.array([-1.0, 0.0, 2.0])), [-1 / (1 + np.exp(1.702)), 0, 2 / (1 + np.exp(-3.404))], rtol=1e-5
  )


def test_rotary_positions_rotate_channel_pairs_by_position_times_rate():
  x = np.array([1.0, 0, 0, 0, 1.0, 0, 0, 0], np.float32)[None, None, None]  # the first channel pair of both groups
  out = np.asarray(rotate(jnp.asarray(x), [jnp.array([2]), jnp.array([3])]))[0, 0, 0]
  np.testing.assert_allclose(out, [np.cos(2), 0, np.sin(2), 0, np.cos(3), 0, np.sin(3), 0], atol=1e-6)
  slow = np.roll(x, 1, axis=-1)  # the second channel pair, with a rate of 10000^(-1/2)
  out = np.asarray(rotate(jnp.asarray(slow), [jnp.array([2]), jnp.array([3])]))[0, 0, 0]
  np.testing.assert_allclose(out, [0, np.cos(0.02), 0, np.sin(0.02), 0, np.cos(0.03), 0, np.sin(0.03)], atol=1e-6)


def test_dot_products_of_rotated_vectors_depend_only_on_position_differences():
  query, key = jnp.asarray(_x(1, 5, 2, 8)), jnp.asarray(_x(1, 5, 2, 8)[..., ::-1].copy())

  def scores(shift):
    row, column = jnp.arange(5) // 2 + shift, jnp.arange(5) % 2 + 2 * shift
    return jnp.einsum('BTNH,BSNH->BNTS', rotate(query, [row, column]), rotate(key, [row, column]))

  np.testing.assert_allclose(scores(0), scores(7), atol=1e-4)
  assert np.abs(scores(0) - jnp.einsum('BTNH,BSNH->BNTS', query, key)).max() > 0.1
