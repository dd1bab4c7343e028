import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.models import attention, sparse_attention, transformer
from dalle_jax.models.attention import Pattern
from dalle_jax.models.layers import Norm
from dalle_jax.models.transformer import Block, BlockShape, Transformer

TEXT, GRID, WIDTH = 2, 3, 8
LENGTH = TEXT + GRID**2
ROW, COLUMN, CONV = (Pattern(kind, TEXT, GRID, 3) for kind in ('row', 'column', 'conv'))
SHAPE = BlockShape(num_layers=6, embed_dim=WIDTH, num_heads=2, mlp_ratio=2)
# Two whole periods, one layer of an incomplete period, and a last layer with its own pattern.
TINY = Transformer(SHAPE, (ROW, COLUMN), CONV)
PATTERNS = [ROW, COLUMN, ROW, COLUMN, ROW, CONV]
MODERN = dataclasses.replace(SHAPE, norm='rmsnorm', mlp='swiglu', qk_norm=True, sandwich_norm=True, rotary=True)


def _shapes(model):
  return nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, LENGTH, WIDTH)))['params']))


def _random_params(model):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), _shapes(model))


@pytest.fixture(scope='module')
def params():
  return _random_params(TINY)


@pytest.fixture(scope='module')
def x():
  return np.random.default_rng(1).normal(size=(2, LENGTH, WIDTH)).astype(np.float32)


def _apply(model, params, x):
  return jax.jit(lambda p, x: model.apply({'params': p}, x))(params, x)


def _norm(x, params):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * params['scale'] + params['bias']


def _attend(query, key, value, pattern):
  scores = np.einsum('btnh,bsnh->bnts', query, key) / np.sqrt(query.shape[-1])
  scores = np.where(pattern.mask(), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum('bnts,bsnh->btnh', weights / weights.sum(-1, keepdims=True), value)


def _reference_layer(x, p, pattern):
  """One layer in numpy, from the paper's description."""
  qkv = np.einsum('btd,dqnh->qbtnh', _norm(x, p['attention_norm']), p['qkv']['kernel'])
  query, key, value = qkv + p['qkv']['bias'][:, None, None]
  mixed = _attend(query, key, value, pattern)
  x = x + np.einsum('btnh,nhd->btd', mixed, p['out']['kernel']) + p['out']['bias']
  mlp = p['mlp']
  hidden = _norm(x, p['mlp_norm']) @ mlp['mlp_in']['kernel'] + mlp['mlp_in']['bias']
  return x + (hidden / (1 + np.exp(-1.702 * hidden))) @ mlp['mlp_out']['kernel'] + mlp['mlp_out']['bias']


def test_stack_matches_a_float64_reference(params, x):
  assert TINY.layer_patterns == PATTERNS
  expected = np.asarray(x, np.float64)
  for layer, pattern in zip(transformer.unstack(TINY, params)['layers'], PATTERNS, strict=True):
    expected = _reference_layer(expected, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), layer), pattern)
  np.testing.assert_allclose(_apply(TINY, params, x), _norm(expected, params['norm']), atol=5e-4)


@pytest.mark.parametrize('shape', [SHAPE, MODERN], ids=['paper', 'modern'])
def test_scan_equals_a_python_loop_over_blocks(shape, x):
  model = TINY.clone(shape=shape)
  params = _random_params(model)

  @jax.jit
  def loop(params, x):
    for layer, pattern in zip(transformer.unstack(model, params)['layers'], PATTERNS, strict=True):
      x = Block(shape, pattern).apply({'params': layer}, x)
    return Norm(shape.norm, jnp.float32).apply({'params': params['norm']}, x)

  np.testing.assert_allclose(_apply(model, params, x), loop(params, x), atol=2e-5)


def test_block_with_all_options_matches_a_numpy_reference(x):
  block = Block(MODERN, ROW)
  shapes = nn.unbox(jax.eval_shape(block.init, jax.random.key(0), x)['params'])
  rng = np.random.default_rng(2)
  p = jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)

  def norm(x, name):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p[name]['scale']

  qkv = np.einsum('btd,dqnh->qbtnh', norm(x, 'attention_norm'), p['qkv']['kernel'])
  query, key, value = qkv + p['qkv']['bias'][:, None, None]
  positions = [(t, t) if t < TEXT else (TEXT + (t - TEXT) // GRID, TEXT + (t - TEXT) % GRID) for t in range(LENGTH)]

  def turn(z):
    # Heads have four channels: one pair for the row and one for the column, both with a rate of 1.
    angles = np.array(positions)[None, :, None]
    pairs = z.reshape(*z.shape[:-1], 2, 2)
    complex_ = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)
    return np.stack([complex_.real, complex_.imag], -1).reshape(z.shape)

  mixed = _attend(turn(norm(query, 'query_norm')), turn(norm(key, 'key_norm')), value, ROW)
  branch = np.einsum('btnh,nhd->btd', mixed, p['out']['kernel']) + p['out']['bias']
  y = x + norm(branch, 'attention_end_norm')
  z, mlp = norm(y, 'mlp_norm'), p['mlp']
  gate, inner = (z @ mlp[name]['kernel'] + mlp[name]['bias'] for name in ('mlp_gate', 'mlp_in'))
  branch = (gate / (1 + np.exp(-gate)) * inner) @ mlp['mlp_out']['kernel'] + mlp['mlp_out']['bias']
  out = jax.jit(lambda p, x: block.apply({'params': p}, x))(p, x)
  np.testing.assert_allclose(out, y + norm(branch, 'mlp_end_norm'), atol=1e-4)


@pytest.fixture(scope='module')
def rematerialised():
  """The loss, the gradient and the temporary memory of each policy; 'none' stores every activation."""
  deep, results = Transformer(dataclasses.replace(SHAPE, num_layers=8), (ROW,), CONV), {}
  params, x = _random_params(deep), np.random.default_rng(1).normal(size=(64, LENGTH, WIDTH)).astype(np.float32)
  for policy in ('none', 'attention', 'dots', 'full'):
    model = deep.clone(remat=policy)
    step = jax.jit(jax.value_and_grad(lambda p, x, model=model: jnp.mean(jnp.sin(model.apply({'params': p}, x)))))
    program = step.lower(params, x).compile()
    results[policy] = *program(params, x), program.memory_analysis().temp_size_in_bytes
  return results


@pytest.mark.parametrize('policy', ['full', 'dots', 'attention'])
def test_rematerialisation_changes_neither_values_nor_gradients(rematerialised, policy):
  (value, gradient, _), (other_value, other_gradient, _) = rematerialised['none'], rematerialised[policy]
  np.testing.assert_allclose(value, other_value, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), gradient, other_gradient)
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-3


def test_rematerialisation_policies_reduce_memory_in_the_documented_order(rematerialised):
  temporary = {policy: memory for policy, (*_, memory) in rematerialised.items()}
  assert temporary['full'] < temporary['dots'] < temporary['attention'] < temporary['none']


def test_size_of_the_program_does_not_grow_with_depth(x):
  def program(num_layers):
    model = Transformer(dataclasses.replace(SHAPE, num_layers=num_layers), (ROW, COLUMN), CONV)
    return str(jax.make_jaxpr(lambda p: model.apply({'params': p}, x))(_shapes(model)))

  assert len(program(41).splitlines()) == len(program(5).splitlines())


@pytest.mark.parametrize('shape', [SHAPE, MODERN], ids=['paper', 'modern'])
def test_prefill_and_steps_equal_the_outputs_of_the_whole_sequence(shape, x):
  model = TINY.clone(shape=shape)
  params = _random_params(model)
  expected = np.asarray(_apply(model, params, x))
  decode_params = jax.jit(lambda p: transformer.unstack(model, p))(params)
  prefill = jax.jit(lambda p, x: transformer.prefill(model, p, x))
  step = jax.jit(lambda p, x, cache, index: transformer.step(model, p, x, cache, index))
  for prefix in (1, 6):
    cache, out = prefill(decode_params, x[:, :prefix])
    np.testing.assert_allclose(out, expected[:, :prefix], atol=5e-5)
    for t in range(prefix, LENGTH):
      cache, out = step(decode_params, x[:, t : t + 1], cache, jnp.asarray(t))
      np.testing.assert_allclose(out, expected[:, t : t + 1], atol=5e-5)


def test_bfloat16_model_has_float32_parameters_and_close_outputs(params, x):
  half = TINY.clone(shape=dataclasses.replace(SHAPE, dtype=jnp.bfloat16))
  assert {leaf.dtype for leaf in jax.tree.leaves(_shapes(half))} == {jnp.dtype('float32')}
  out, full = _apply(half, params, x), _apply(TINY, params, x)
  assert out.dtype == jnp.bfloat16
  assert 0 < np.abs(out.astype(np.float32) - full).max() < 0.1 * np.abs(full).max()


@pytest.mark.parametrize('init_scale', [0.125, 1.0])
def test_initial_kernels_have_the_deviations_of_child_et_al(init_scale):
  shape = BlockShape(8, 32, 4, 4, init_scale=init_scale)
  model = Transformer(shape, (Pattern('full', 4, 0),))
  init = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 4, 32)))['params'])
  layer = nn.unbox(init())['layers']['block_0']
  kernels = {'qkv': layer['qkv'], 'out': layer['out'], **{name: layer['mlp'][name] for name in ('mlp_in', 'mlp_out')}}
  scales = {name: float(np.std(kernel['kernel'])) / init_scale for name, kernel in kernels.items()}
  # The 2 * 8 branches are scaled by (2 * 8)^-1/2, so that the variance does not grow with depth.
  assert scales == pytest.approx(
    {'qkv': 32**-0.5, 'out': 32**-0.5 / 4, 'mlp_in': 32**-0.5, 'mlp_out': 128**-0.5 / 4}, rel=0.05
  )
  first, second = layer['qkv']['kernel'][:2]
  assert np.abs(first - second).max() > 0.1 * init_scale  # layers are initialised differently


def test_stack_shorter_than_its_period_has_no_scanned_layers(x):
  model = Transformer(dataclasses.replace(SHAPE, num_layers=2), (ROW, COLUMN, ROW, ROW), CONV)
  params = _random_params(model)
  assert set(params) == {'rest_0', 'rest_1', 'norm'}
  expected = np.asarray(x, np.float64)
  for name, pattern in (('rest_0', ROW), ('rest_1', CONV)):
    expected = _reference_layer(expected, params[name], pattern)
  np.testing.assert_allclose(_apply(model, params, x), _norm(expected, params['norm']), atol=2e-4)


@pytest.mark.parametrize('kind', ['row', 'column'])
@pytest.mark.parametrize('rotary', [False, True], ids=['', 'rotary'])
def test_block_with_sparse_attention_equals_dense_attention(kind, rotary):
  # Blocks use sparse attention above `sparse_attention.SHORT` slots. The sequences in the other tests are shorter.
  pattern = Pattern(kind, 3, 17)
  assert pattern.length > sparse_attention.SHORT
  block, shape = Block(BlockShape(1, 4, 1, rotary=rotary), pattern), (1, pattern.length, 4)
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

  @jax.jit
  def outputs(x):
    p = nn.unbox(block.init(jax.random.key(0), x)['params'])
    query, key, value = block.apply({'params': p}, x, jnp.arange(pattern.length), method='_qkv')
    mixed = attention.attend(query, key, value, pattern.mask())
    return block.apply({'params': p}, x), block.apply({'params': p}, x, mixed, method='_finish')

  np.testing.assert_allclose(*outputs(x), atol=1e-5)


@pytest.mark.parametrize(
  ('shape', 'pattern'),
  [(SHAPE, ROW), (SHAPE, Pattern('full', TEXT, GRID)), (MODERN, COLUMN), (MODERN, CONV)],
  ids=['paper-row', 'paper-full', 'modern-column', 'modern-conv'],
)
def test_observe_returns_the_attention_weights_of_the_layer(shape, pattern, x):
  block = Block(shape, pattern)
  params = nn.unbox(jax.eval_shape(block.init, jax.random.key(0), x)['params'])
  rng = np.random.default_rng(4)
  params = jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), params)

  @jax.jit
  def outputs(p, x):
    observed, weights = block.apply({'params': p}, x, method='observe')
    value = block.bind({'params': p})._qkv(x, jnp.arange(LENGTH))[2]
    mixed = block.bind({'params': p})._finish(x, jnp.einsum('bnts,bsnh->btnh', weights, value))
    return observed, weights, mixed, block.apply({'params': p}, x)

  out, weights, mixed, expected = outputs(params, x)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
  assert not np.asarray(weights)[:, :, ~pattern.mask()].any()
  np.testing.assert_allclose(mixed, out, atol=1e-5)
