import numpy as np

from dalle_jax.config import MeshConfig
from dalle_jax.evaluation import inception_features
from dalle_jax.sharding import make_mesh


class MeanColours:
  """A fast substitute for Inception-v3, which compiles slowly; the tests of `importing.inception_weights` run it."""

  def apply(self, variables, x):
    return x.mean(axis=(1, 2)) * variables['params']


def test_images_pass_through_preparation_and_network_in_batches(monkeypatch):
  monkeypatch.setattr(inception_features, 'Inception', MeanColours)
  colours = np.random.default_rng(0).integers(0, 256, (5, 3)).astype(np.uint8)
  images = np.broadcast_to(colours[:, None, None], (5, 4, 6, 3))
  features = inception_features.InceptionFeatures(np.float32(2), make_mesh(MeshConfig()), batch_size=2)(images)
  np.testing.assert_allclose(features, 2 * (colours.astype(np.float64) / 128 - 1), rtol=1e-4, atol=1e-4)
