import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.models import attention, transformer
from dalle_jax.models.transformer import Transformer

LENGTH = 6
TINY = Transformer(num_layers=3, num_heads=2, head_dim=4, mlp_ratio=2)
WIDTH = 8


def _init(model):
  return model.init(jax.random.key(0), jnp.zeros((1, LENGTH, model.num_heads * model.head_dim)))['params']


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda: _init(TINY)))
  return jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@pytest.fixture(scope='module')
def x():
  return np.random.default_rng(1).normal(size=(2, LENGTH, WIDTH)).astype(np.float32)


def _apply(model, params, x):
  return jax.jit(lambda p, x: model.apply({'params': p}, x))(params, x)


def _norm(x, params):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * params['scale'] + params['bias']


def _layer_by_hand(x, p):
  """One layer in float64, from the paper's description."""
  qkv = np.einsum('btd,dqnh->qbtnh', _norm(x, p['attention_norm']), p['qkv']['kernel'])
  query, key, value = qkv + p['qkv']['bias'][:, None, None]
  scores = np.einsum('btnh,bsnh->bnts', query, key) / np.sqrt(query.shape[-1])
  scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  mixed = np.einsum('bnts,bsnh->btnh', weights / weights.sum(-1, keepdims=True), value)
  x = x + np.einsum('btnh,nhd->btd', mixed, p['out']['kernel']) + p['out']['bias']
  hidden = _norm(x, p['mlp_norm']) @ p['mlp_in']['kernel'] + p['mlp_in']['bias']
  return x + (hidden / (1 + np.exp(-1.702 * hidden))) @ p['mlp_out']['kernel'] + p['mlp_out']['bias']


def test_the_stack_is_its_layers_one_after_the_other_and_a_norm(params, x):
  expected = np.asarray(x, np.float64)
  for layer in transformer.unstack(params)['layers']:
    expected = _layer_by_hand(expected, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), layer))
  np.testing.assert_allclose(_apply(TINY, params, x), _norm(expected, params['norm']), atol=2e-4)


def test_scan_equals_a_python_loop_over_blocks(params, x):
  @jax.jit
  def loop(params, x):
    block, mask = transformer.Block(**TINY.block_fields), attention.causal_mask(LENGTH)
    for layer in transformer.unstack(params)['layers']:
      x, _ = block.apply({'params': layer}, x, mask)
    return transformer.LayerNorm(jnp.float32).apply({'params': params['norm']}, x)

  np.testing.assert_allclose(_apply(TINY, params, x), loop(params, x), atol=1e-5)


def test_recomputing_activations_changes_neither_values_nor_gradients(params, x):
  def loss(model):
    return jax.jit(jax.value_and_grad(lambda p: jnp.mean(jnp.sin(model.apply({'params': p}, x)))))(params)

  value, gradient = loss(TINY)
  other_value, other_gradient = loss(TINY.clone(remat=True))
  np.testing.assert_allclose(value, other_value, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, other_gradient)
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-3


def test_recomputing_activations_is_really_asked_for(params, x):
  def names(model):
    return str(jax.make_jaxpr(jax.grad(lambda p: model.apply({'params': p}, x).sum()))(params))

  assert 'remat' not in names(TINY)
  assert 'remat' in names(TINY.clone(remat=True))


@pytest.mark.parametrize('prefix', [1, 4])
def test_prefill_and_steps_equal_the_whole_sequence(params, x, prefix):
  whole = _apply(TINY, params, x)
  apart = transformer.unstack(params)
  cache, out = jax.jit(lambda p, x: transformer.prefill(TINY, p, x, LENGTH))(apart, x[:, :prefix])
  np.testing.assert_allclose(out, whole[:, :prefix], atol=1e-5)
  step = jax.jit(lambda p, x, cache, index: transformer.step(TINY, p, x, cache, index))
  for t in range(prefix, LENGTH):
    cache, out = step(apart, x[:, t : t + 1], cache, jnp.asarray(t))
    np.testing.assert_allclose(out, whole[:, t : t + 1], atol=1e-5)


def test_half_precision_keeps_float32_parameters_and_is_close(params, x):
  half = TINY.clone(dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(lambda: _init(half)))} == {jnp.dtype('float32')}
  out, full = _apply(half, params, x), _apply(TINY, params, x)
  assert out.dtype == jnp.bfloat16
  assert 0 < np.abs(out.astype(np.float32) - full).max() < 0.1 * np.abs(full).max()


def test_branches_start_small_enough_to_keep_the_variance_of_deep_stacks():
  deep = Transformer(num_layers=8, num_heads=4, head_dim=8, mlp_ratio=4)
  layer = nn.unbox(jax.jit(lambda: _init(deep))())['layers']['block']
  scales = {name: float(np.std(layer[name]['kernel'])) for name in ('qkv', 'out', 'mlp_in', 'mlp_out')}
  assert scales == pytest.approx(
    {'qkv': 32**-0.5, 'out': 32**-0.5 / 4, 'mlp_in': 32**-0.5, 'mlp_out': 128**-0.5 / 4}, rel=0.05
  )
  first, second = layer['qkv']['kernel'][:2]
  assert np.abs(first - second).max() > 0.1  # layers do not start equal


def test_quick_gelu():
  np.testing.assert_allclose(
    transformer.quick_gelu(jnp.array([-1.0, 0.0, 2.0])), [-1 / (1 + np.exp(1.702)), 0, 2 / (1 + np.exp(-3.404))],
    rtol=1e-5,
  )  # fmt: skip
