import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn

from dalle_jax.config import MeshConfig
from dalle_jax.evaluation import elbo
from dalle_jax.models import bottleneck, likelihood
from dalle_jax.models.attention import Pattern
from dalle_jax.models.dvae import Dvae
from dalle_jax.models.prior import Prior
from dalle_jax.models.transformer import BlockShape, Transformer
from dalle_jax.sharding import make_mesh

K, TEXT, FLOOR = 3, 5, -3.0
DVAE = Dvae(image_vocab_size=K, hidden_size=4, decoder_input_size=4, num_groups=2, blocks_per_group=1)
APPLY = jax.jit(DVAE.apply, static_argnames='method')
PRIOR = Prior(TEXT, K, Transformer(BlockShape(1, 8, 2), (Pattern('full', 3, 2),)))


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)

  def fresh():
    key = jax.random.key(0)
    return {'dvae': DVAE.init(key, jnp.zeros((1, 4, 4, 3)))['params'], 'prior': PRIOR.init(key)}

  shapes = nn.unbox(jax.eval_shape(fresh))
  return jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope='module')
def image():
  """An image of 2 x 2 codes: small enough to enumerate all 81 grids."""
  return np.random.default_rng(1).integers(0, 256, (1, 4, 4, 3), np.uint8)


TEXTS = np.array([[2, 4]], np.int32)


@pytest.fixture(scope='module')
def measured(params, image):
  """The terms for 4,000 copies of one image, each with its own sample of codes."""
  mesh = make_mesh(MeshConfig())
  batch = {'image': image.repeat(1000, axis=0), 'text': TEXTS.repeat(1000, axis=0)}
  return elbo.measure(DVAE, PRIOR, FLOOR, params, [(1000, batch)] * 4, mesh, seed=0)


@pytest.fixture(scope='module')
def exact(params, image):
  """Exact expectations over q, by enumerating all grids of codes."""
  variables = {'params': params['dvae']}
  z = np.asarray(APPLY(variables, image, method='encode_latents'), np.float64).reshape(4, K)
  q = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  grids = np.array(list(itertools.product(range(K), repeat=4)))
  weight = np.prod(q[np.arange(4), grids], axis=-1)
  stats = APPLY(variables, grids.reshape(-1, 2, 2), method='decode_stats')
  mapped = likelihood.map_pixels(image.repeat(len(grids), axis=0))
  density = np.asarray(likelihood.logit_laplace_nll(mapped, stats, FLOOR), np.float64).sum((1, 2, 3))
  # The probability of a pixel is the difference of the cumulative distributions at the edges of its bin.
  mu, log_scale = np.split(np.asarray(stats, np.float64), 2, axis=-1)
  above = 0.1 + 0.8 / 255 * (image.astype(np.float64) + 0.5)
  cumulative = [
    scipy.stats.laplace.cdf(np.log(edge / (1 - edge)), mu, np.exp(np.maximum(log_scale, FLOOR)))
    for edge in (above - 0.8 / 255, above)
  ]
  probs = np.where(image == 255, 1, cumulative[1]) - np.where(image == 0, 0, cumulative[0])
  texts = np.repeat(TEXTS, len(grids), axis=0)
  text_logits, image_logits = jax.jit(PRIOR.split_logits)(params['prior'], jnp.asarray(texts), jnp.asarray(grids))
  nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(image_logits)), grids[..., None], -1).sum((1, 2))
  return {
    'distortion': np.sum(weight * -np.log(probs).sum((1, 2, 3))),
    'density_nll': np.sum(weight * density),
    'kl_uniform': np.sum(weight * np.log(weight * K**4)),
    'kl_prior': np.sum(weight * (np.log(weight) + nll)),
    'text': -np.asarray(jax.nn.log_softmax(text_logits))[0, np.arange(3), [2, 4, 0]].sum(),
  }


@pytest.mark.parametrize('name', ['distortion', 'density_nll', 'kl_uniform', 'kl_prior'])
def test_means_over_samples_match_the_exact_expectations(measured, exact, name):
  values = measured[f'sampled/{name}']
  error = np.std(values) / np.sqrt(len(values))
  assert values.mean() == pytest.approx(exact[name], abs=max(4.5 * error, 1e-4))
  assert exact['kl_prior'] > 0


def test_the_kl_to_the_uniform_prior_is_the_kl_that_training_minimises(params, image, measured):
  z = APPLY({'params': params['dvae']}, image, method='encode_latents')
  np.testing.assert_allclose(measured['sampled/kl_uniform'], float(bottleneck.kl_to_uniform(z).sum()), rtol=1e-4)


def test_the_argmax_posterior_has_no_entropy_and_no_sampling_noise(measured):
  np.testing.assert_allclose(measured['argmax/kl_uniform'], 4 * np.log(K), rtol=1e-6)
  assert np.ptp(measured['argmax/kl_prior']) < 1e-4
  assert np.ptp(measured['argmax/distortion']) < 1e-3
  assert np.ptp(measured['sampled/distortion']) > 0.1


def test_the_caption_has_its_own_term(measured, exact):
  np.testing.assert_allclose(measured['text'], exact['text'], rtol=1e-4)


def test_the_terms_of_an_image_do_not_depend_on_its_batch(params, image):
  mesh = make_mesh(MeshConfig())
  pictures, texts = image.repeat(6, axis=0), TEXTS.repeat(6, axis=0)

  def batches(size):
    for begin in range(0, 6, size):
      rows = np.minimum(np.arange(begin, begin + size), 5)
      yield min(size, 6 - begin), {'image': pictures[rows], 'text': texts[rows]}

  one_batch, two_batches = (elbo.measure(DVAE, PRIOR, FLOOR, params, batches(size), mesh, seed=3) for size in (6, 4))
  for name, values in one_batch.items():
    assert values.shape == (6,)
    np.testing.assert_allclose(values, two_batches[name], rtol=1e-5)


def test_without_a_prior_only_the_uniform_kl_is_measured_and_fsq_has_only_the_argmax_posterior(params, image):
  mesh = make_mesh(MeshConfig())
  alone = elbo.measure(DVAE, None, FLOOR, params, [(1, {'image': image})], mesh, seed=0)
  assert set(alone) == {f'{p}/{name}' for p in elbo.POSTERIORS for name in ('distortion', 'density_nll', 'kl_uniform')}
  fsq = DVAE.clone(bottleneck='fsq', fsq_levels=(3,))
  fresh = jax.jit(lambda: nn.unbox(fsq.init(jax.random.key(0), image)['params']))()
  terms = elbo.measure(fsq, None, FLOOR, {'dvae': fresh}, [(1, {'image': image})], mesh, seed=0)
  assert set(terms) == {'argmax/distortion', 'argmax/density_nll', 'argmax/kl_uniform'}


def test_the_summary_matches_hand_computed_values():
  terms = {
    'sampled/distortion': np.array([10.0, 14.0]), 'sampled/density_nll': np.array([-8.0, -16.0]),
    'sampled/kl_uniform': np.array([4.0, 6.0]), 'sampled/kl_prior': np.array([3.0, 4.0]), 'text': np.array([1.0, 2.0]),
  }  # fmt: skip
  figures = elbo.summarize(terms, num_dims=8, num_codes=2, kl_weight=0.5)
  assert figures['sampled/uniform/nats'] == 17
  assert figures['sampled/uniform/nats_stderr'] == pytest.approx(3)
  assert figures['sampled/prior/bits_per_dim'] == pytest.approx(15.5 / 8 / np.log(2))
  assert figures['sampled/gain/nats'] == 1.5
  assert figures['sampled/gain/nats_stderr'] == pytest.approx(0.5)
  assert figures['sampled/distortion'] == 12 and figures['sampled/density_nll'] == -1.5
  assert figures['sampled/prior/phase_1_loss'] == pytest.approx(-1.5 + 0.5 * 3.5 / 2)
  assert figures['sampled/gain/phase_1_loss'] == pytest.approx(0.5 * 1.5 / 2)
  assert figures['text/nats'] == 1.5
