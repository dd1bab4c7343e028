import numpy as np
from random_models import PICTURES, random_params

from dalle_jax.config import Config, MeshConfig
from dalle_jax.factory import make_prior
from dalle_jax.sampling.likelihood import image_nats
from dalle_jax.sharding import make_mesh

CONFIG = Config.from_dict(PICTURES)


def test_nats_are_those_of_the_whole_sequences_softmax_whatever_the_batch():
  prior, params = make_prior(CONFIG, 20), random_params(CONFIG, 20)['prior']
  rng = np.random.default_rng(0)
  text, codes = rng.integers(1, 20, (3, 5)).astype(np.int32), rng.integers(8, size=(3, 4, 4)).astype(np.int32)
  mesh = make_mesh(MeshConfig())
  nats = image_nats(prior, params, text, codes, mesh, 2)
  logits = np.asarray(prior.split_logits(params, text, codes.reshape(3, -1))[1], np.float64)
  probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  expected = -np.log(np.take_along_axis(probs, codes.reshape(3, -1, 1), axis=-1)).reshape(3, 4, 4)
  np.testing.assert_allclose(nats, expected, rtol=1e-4, atol=1e-5)
