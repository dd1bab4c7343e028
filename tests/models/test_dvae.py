import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax import sharding
from dalle_jax.models import dvae as module
from dalle_jax.models.dvae import Dvae

PAPER = Dvae(image_vocab_size=8192, hidden_size=256, decoder_input_size=128, num_groups=4, blocks_per_group=2)
TINY = Dvae(
  image_vocab_size=6, hidden_size=4, decoder_input_size=3, num_groups=2, blocks_per_group=1, patch_size=2
)  # fmt: skip


def _shape(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def _init(model, size):
  return lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3), jnp.uint8))['params']


@pytest.fixture(scope='module')
def paper_params():
  return jax.eval_shape(_init(PAPER, 256))


@pytest.fixture(scope='module')
def tiny_params():
  """Parameters with random entries. Initial biases are zero, which would hide mistakes."""
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(_init(TINY, 8)))
  return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)


@functools.cache
def _jitted(model, method):
  return jax.jit(lambda p, *arguments: model.apply({'params': p}, *arguments, method=method))


def _apply(params, argument, method, model=TINY):
  return _jitted(model, method)(params, argument)


def _count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_papers_model_has_the_parameter_counts_of_the_released_model(paper_params):
  assert _count(paper_params['encoder']) == 53_786_240
  # The released decoder includes its input convolution, which is the bottleneck 'code' here.
  assert _count(paper_params['decoder']) + _count(paper_params['code']) == 43_829_766


def test_papers_model_has_the_kernel_shapes_of_the_released_model(paper_params):
  encoder, decoder = nn.unbox(paper_params['encoder']), nn.unbox(paper_params['decoder'])
  assert encoder['input']['kernel'].shape == (7, 7, 3, 256)
  assert encoder['output']['kernel'].shape == (1, 1, 2048, 8192)
  assert paper_params['code']['kernel'].value.shape == (8192, 128)
  assert decoder['output']['kernel'].shape == (1, 1, 256, 6)
  block = {name: leaf['kernel'].shape for name, leaf in encoder['group_2_block_1'].items()}
  assert block == {
    'conv_1': (3, 3, 256, 128),
    'conv_2': (3, 3, 128, 128),
    'conv_3': (3, 3, 128, 128),
    'conv_4': (1, 1, 128, 512),
    'id_path': (1, 1, 256, 512),
  }
  block = {name: leaf['kernel'].shape for name, leaf in decoder['group_1_block_1'].items()}
  assert block['conv_1'] == (1, 1, 128, 512)
  assert block['conv_4'] == (3, 3, 512, 2048)


def test_papers_model_encodes_256_pixels_to_32_by_32_codes(paper_params):
  params = {'params': nn.unbox(paper_params)}
  image, codes = _shape(2, 256, 256, 3, dtype=jnp.uint8), _shape(2, 32, 32, dtype=jnp.int32)

  def out(argument, method):
    return jax.eval_shape(lambda p, x: PAPER.apply(p, x, method=method), params, argument)

  assert out(image, 'encode_latents').shape == (2, 32, 32, 8192)
  assert out(image, 'encode').shape == codes.shape
  assert out(image, 'encode').dtype == jnp.int32
  assert out(codes, 'decode_stats').shape == (2, 256, 256, 6)
  assert out(codes, 'decode').shape == image.shape
  assert out(image, '__call__').shape == (2, 256, 256, 6)


@pytest.mark.parametrize('model', [PAPER, TINY])
def test_every_axis_of_every_parameter_has_a_sharding_rule(model):
  for leaf in jax.tree.leaves(jax.eval_shape(_init(model, 16)), is_leaf=lambda x: isinstance(x, nn.Partitioned)):
    assert isinstance(leaf, nn.LogicallyPartitioned)
    assert len(leaf.names) == leaf.value.ndim
    assert set(leaf.names) <= set(sharding.RULES)


def test_integer_codes_decode_like_one_hot_vectors(tiny_params):
  codes = np.random.default_rng(2).integers(0, 6, (2, 2, 2))
  by_row = _apply(tiny_params, codes, 'decode_stats')
  by_product = _apply(tiny_params, np.eye(6, dtype=np.float32)[codes], 'mixed_stats')
  np.testing.assert_allclose(by_row, by_product, atol=1e-5)
  assert np.ptp(np.asarray(by_row)) > 0.1


def test_encode_returns_argmaxes_and_accepts_uint8_or_float_images(tiny_params, images):
  logits = _apply(tiny_params, images, 'encode_latents')
  assert logits.shape == (2, 2, 2, 6)
  np.testing.assert_array_equal(_apply(tiny_params, images, 'encode'), np.argmax(logits, -1))
  np.testing.assert_array_equal(_apply(tiny_params, images.astype(np.float32), 'encode_latents'), logits)


def test_decode_returns_images_in_the_pixel_range(tiny_params):
  pixels = _apply(tiny_params, np.zeros((1, 2, 2), np.int32), 'decode')
  assert pixels.shape == (1, 8, 8, 3)
  assert 0 <= pixels.min() <= pixels.max() <= 255


def test_codes_do_not_depend_on_other_images_in_the_batch(tiny_params, images):
  together = _apply(tiny_params, images, 'encode_latents')
  alone = _apply(tiny_params, images[1:], 'encode_latents')
  np.testing.assert_allclose(together[1:], alone, atol=1e-5)


def test_bfloat16_model_has_float32_parameters_and_outputs(tiny_params, images):
  half = TINY.clone(dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(_init(half, 8)))} == {jnp.dtype('float32')}
  for method, argument in (('encode_latents', images), ('decode_stats', np.ones((2, 2, 2), np.int32))):
    full = _apply(tiny_params, argument, method)
    low = _apply(tiny_params, argument, method, half)
    assert low.dtype == jnp.float32
    assert 0 < np.abs(full - low).max() < 0.1 * np.abs(full).max()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
@settings(max_examples=30)
def test_fold_moves_patches_into_channels_and_unfold_inverts_it(height, width, channels, p):
  x = np.arange(2 * height * p * width * p * channels).reshape(2, height * p, width * p, channels)
  folded = np.asarray(module.fold(x, p))
  assert folded.shape == (2, height, width, p * p * channels)
  for i, j in np.ndindex(height, width):
    patch = x[:, i * p : (i + 1) * p, j * p : (j + 1) * p]
    np.testing.assert_array_equal(folded[:, i, j], patch.reshape(2, -1))
  np.testing.assert_array_equal(module.unfold(folded, p), x)


@pytest.mark.parametrize('kernel_size', [1, 3])
def test_convolution_matches_a_numpy_reference(kernel_size):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 3, 4, 2)).astype(np.float32)
  kernel = rng.normal(size=(kernel_size, kernel_size, 2, 3)).astype(np.float32)
  bias = rng.normal(size=3).astype(np.float32)
  half = kernel_size // 2
  padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
  expected = np.zeros((1, 3, 4, 3))
  for i, j in np.ndindex(3, 4):
    expected[0, i, j] = bias + np.einsum('hwc,hwcf->f', padded[0, i : i + kernel_size, j : j + kernel_size], kernel)
  out = module.Conv(3, kernel_size).apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_gain_of_a_block_scales_only_the_residual_branch():
  block = module.Block(features=4, kernels=(3, 3, 3, 1), post_gain=0.0, dtype=jnp.float32)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 4, 4, 4)).astype(np.float32)
  shapes = nn.unbox(jax.eval_shape(lambda: block.init(jax.random.key(0), x)))
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)

  @jax.jit
  def branch(gain):
    return block.clone(post_gain=gain).apply(params, x) - x

  np.testing.assert_array_equal(branch(0.0), 0 * x)
  np.testing.assert_allclose(branch(0.5), branch(1.0) / 2, atol=1e-5)
  assert np.abs(branch(1.0)).max() > 0.1


def test_residual_gain_defaults_to_the_released_models_gain(tiny_params, images):
  # TINY has 2 groups of 1 block, so the default gain is 1 / 2^2.
  default = _apply(tiny_params, images, 'encode_latents')
  np.testing.assert_array_equal(default, _apply(tiny_params, images, 'encode_latents', TINY.clone(residual_gain=0.25)))
  assert np.abs(default - _apply(tiny_params, images, 'encode_latents', TINY.clone(residual_gain=1.0))).max() > 0.1


def test_decode_part_ignores_unknown_codes(tiny_params):
  codes = np.array([[[1, 3], [2, 0]]], np.int32)
  known = np.array([[[True, True], [False, False]]])

  def decode_part(codes, known):
    return np.asarray(_jitted(TINY, 'decode_part')(tiny_params, codes, known))

  np.testing.assert_array_equal(decode_part(codes, known | True), _apply(tiny_params, codes, 'decode'))
  other = np.array([[[1, 3], [4, 5]]], np.int32)
  np.testing.assert_array_equal(decode_part(codes, known), decode_part(other, known))
  assert np.any(decode_part(codes, known) != decode_part(codes, known | True))
