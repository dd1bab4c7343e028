import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.config import MeshConfig
from dalle_jax.evaluation.reconstruction import psnr, reconstruct, scores, ssim
from dalle_jax.models.dvae import Dvae
from dalle_jax.sharding import make_mesh

DVAE = Dvae(image_vocab_size=8, hidden_size=4, decoder_input_size=4, num_groups=2, blocks_per_group=1)


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda: DVAE.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))['params']))
  return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), np.uint8)


def test_reconstructions_are_the_decoded_codes_for_every_batch_size(params, images):
  mesh = make_mesh(MeshConfig())
  codes, pictures = reconstruct(DVAE, params, images, mesh, 2)
  assert (codes.shape, codes.dtype) == ((5, 2, 2), np.int32)
  assert (pictures.shape, pictures.dtype) == (images.shape, np.uint8)
  whole_codes, whole_pictures = reconstruct(DVAE, params, images, mesh, 5)
  np.testing.assert_array_equal(codes, whole_codes)
  np.testing.assert_array_equal(pictures, whole_pictures)

  def apply(x, method):
    return jax.jit(lambda p, x: DVAE.apply({'params': p}, x, method=method))(params, x)

  np.testing.assert_array_equal(codes, apply(images, 'encode'))
  np.testing.assert_allclose(pictures, apply(codes, 'decode'), atol=0.51)
  assert len(np.unique(codes)) > 1


def test_psnr_is_computed_for_each_image():
  black = np.zeros((4, 2, 2, 3), np.uint8)
  other = black.copy()
  other[1] = 255
  other[2, 0, 0] = 51  # a quarter of the pixels is off by a fifth of the range
  other[3] = 1
  expected = [100, 0, -10 * np.log10(0.04 / 4), 20 * np.log10(255)]
  np.testing.assert_allclose(psnr(black, other), expected, atol=1e-9)
  np.testing.assert_array_equal(psnr(other, black), psnr(black, other))  # uint8 differences must not wrap around


def test_ssim_matches_brute_force():
  rng = np.random.default_rng(0)
  a = rng.integers(0, 256, (2, 13, 12, 3)).astype(np.uint8)
  b = np.clip(a + rng.normal(0, 40, a.shape), 0, 255).astype(np.uint8)
  grid = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
  window = np.outer(grid, grid) / grid.sum() ** 2
  expected = np.zeros((2, 3, 2, 3))
  for n, i, j, c in np.ndindex(expected.shape):
    x, y = (image[n, i : i + 11, j : j + 11, c].astype(float) for image in (a, b))
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy, cov = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum(), (window * (x - mx) * (y - my)).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected[n, i, j, c] = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
  np.testing.assert_allclose(ssim(a, b), expected.mean((1, 2, 3)), rtol=1e-9)
  np.testing.assert_allclose(ssim(a, a), 1)
  assert np.all(ssim(a, b) < 0.95)


def test_scores_match_hand_computed_values():
  originals = np.zeros((2, 2, 2, 3), np.uint8)
  pictures = originals.copy()
  pictures[1] = 255
  codes = np.array([[[0, 0], [3, 3]], [[0, 0], [3, 3]]])
  assert scores(originals, pictures, codes, 8) == pytest.approx(
    {'reconstruction/psnr': 50, 'codebook/perplexity': 2, 'codebook/use': 0.25, 'codebook/num_tokens': 8}, rel=1e-5
  )
