import jax
import numpy as np
import pytest
from inception_weights import pictures, shapes
from PIL import Image

from dalle_jax.models.inception import SIZE, BlockE, mean_pool, prepare


def test_images_are_resized_as_in_clean_fid():
  images = np.concatenate([pictures(), pictures()[:, ::-1]])
  large = np.kron(images[0], np.ones((16, 16, 1))).astype(np.uint8)[None]  # 640 x 384, to test downsampling
  for batch in (images, large):
    resized = [
      [np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
       for c in range(3)]
      for image in batch
    ]  # fmt: skip
    expected = np.moveaxis(np.array(resized), 1, -1).clip(0, 255)
    np.testing.assert_allclose(np.asarray(prepare(batch)) * 128 + 128, expected, atol=0.02)


def test_average_pooling_excludes_padding():
  x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
  expected = np.empty_like(x)
  for row in range(4):
    for column in range(5):
      expected[:, row, column] = x[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean(axis=(1, 2))
  np.testing.assert_allclose(mean_pool(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('max_pool', 'expected'), [(True, 9.0), (False, 1.0)])
def test_last_block_uses_max_pooling_if_asked_to(max_pool, expected):
  x = np.zeros((1, 3, 3, 4), np.float32)
  x[0, 0, 0] = 9
  block = BlockE(max_pool)
  shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x)['params'])
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  params['branch_pool']['kernel'] += 1 / 4
  out = jax.jit(block.apply)({'params': params}, x)
  assert out.shape == (1, 3, 3, 2048)
  np.testing.assert_allclose(out[0, 1, 1, -192:], expected, rtol=1e-6)


def test_layer_and_parameter_counts_match_the_published_weights():
  # The published file holds 23,885,392 numbers: the kernels, four normalisation values per channel, and the classifier.
  kernel_shapes = shapes()
  assert len(kernel_shapes) == 94
  num_channels = sum(shape[-1] for shape in kernel_shapes.values())
  assert sum(np.prod(shape) for shape in kernel_shapes.values()) + 4 * num_channels + 2049 * 1008 == 23_885_392
