import numpy as np

from dalle_jax.config import MeshConfig
from dalle_jax.evaluation import inception_features
from dalle_jax.sharding import make_mesh


class MeanColours:
  """In the network's place, which takes long to compile; `importing.inception_weights` is tested with the real one."""

  def apply(self, variables, x):
    return x.mean(axis=(1, 2)) * variables['params']


def test_pictures_of_any_number_go_through_preparation_and_network(monkeypatch):
  monkeypatch.setattr(inception_features, 'Inception', MeanColours)
  colours = np.random.default_rng(0).integers(0, 256, (5, 3)).astype(np.uint8)
  images = np.broadcast_to(colours[:, None, None], (5, 4, 6, 3))
  found = inception_features.InceptionFeatures(np.float32(2), make_mesh(MeshConfig()), batch_size=2)(images)
  np.testing.assert_allclose(found, 2 * (colours.astype(np.float64) / 128 - 1), rtol=1e-4, atol=1e-4)
