import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.compression import frequencies
from dalle_jax.compression.frequencies import TOTAL
from dalle_jax.models import likelihood

OF_PIXELS, DENSITY_NLL = jax.jit(frequencies.of_pixels), jax.jit(likelihood.logit_laplace_nll)


@pytest.mark.parametrize('scale', [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize('size', [1, 2, 300, 20_000])
def test_frequencies_are_positive_add_up_to_the_total_and_approximate_the_probabilities(size, scale):
  logits = scale * np.random.default_rng(0).normal(size=(3, size)).astype(np.float32)
  counts = np.asarray(jax.jit(frequencies.of_logits)(logits), np.int64)
  assert counts.min() >= 1 and (counts.sum(axis=-1) == TOTAL).all()
  exact = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
  exact /= exact.sum(axis=-1, keepdims=True)
  entropy = -np.sum(exact * np.log2(np.maximum(exact, 1e-300)), axis=-1)
  cross = -np.sum(exact * np.log2(counts / TOTAL), axis=-1)
  assert (cross - entropy < 1e-4 * entropy + 1e-4).all()


def test_tokens_of_probability_zero_get_the_frequency_one():
  counts = np.asarray(frequencies.of_logits(jnp.array([0.0, -jnp.inf, 0.0, -jnp.inf])))
  assert list(counts[[1, 3]]) == [1, 1] and counts.sum() == TOTAL


@pytest.mark.parametrize('logits', [[0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_logits_without_probabilities_are_reported(logits):
  with pytest.raises(ValueError, match='no probabilities'):
    frequencies.cumulative(np.asarray(frequencies.of_logits(jnp.array([logits]))))


def test_cumulative_frequencies_start_at_zero_and_end_at_the_total():
  sums = frequencies.cumulative(np.array([[1, 2, TOTAL - 3], [TOTAL - 2, 1, 1]], np.int32))
  assert sums.tolist() == [[0, 1, 3, TOTAL], [0, TOTAL - 2, TOTAL - 1, TOTAL]] and sums.dtype == np.int32


@pytest.mark.parametrize(('location', 'log_scale'), [(0.0, 0.0), (1.5, -2.0), (-2.0, -4.0), (9.0, -1.0)])
def test_frequencies_of_pixels_are_the_probability_mass_of_their_bins(location, log_scale):
  counts = np.asarray(OF_PIXELS(jnp.float32(location), jnp.float32(log_scale)), np.int64)
  assert counts.sum() == TOTAL and counts.min() >= 1
  # Integrate the density of the decoder's training likelihood numerically, with 200 steps for each bin.
  x = (np.arange(256 * 200) + 0.5) / 200 - 0.5
  mapped = np.asarray(likelihood.map_pixels(jnp.asarray(x, jnp.float32)))[:, None]
  stats = jnp.broadcast_to(jnp.array([location, log_scale], jnp.float32), (len(x), 2))
  density = np.exp(-np.asarray(DENSITY_NLL(jnp.asarray(mapped), stats, -9.0)))[:, 0]
  mass = density.reshape(256, 200).sum(axis=1) * 0.8 / 255 / 200
  np.testing.assert_allclose(counts[1:255] / TOTAL, mass[1:255], atol=2e-4)
  # The first and the last bin have all of the Laplace distribution's mass below and above their inner edges.
  for value, edge, sign in ((0, 0.5, -1), (255, 254.5, 1)):
    mapped = 0.1 + 0.8 / 255 * edge
    distance = sign * (np.log(mapped / (1 - mapped)) - location) / np.exp(log_scale)
    tail = 0.5 * np.exp(-distance) if distance > 0 else 1 - 0.5 * np.exp(distance)
    assert counts[value] / TOTAL == pytest.approx(tail, abs=1e-5)


@pytest.mark.parametrize('log_scale', [-1e6, -100.0, 100.0, 1e6])
def test_extreme_scales_give_valid_distributions(log_scale):
  location = jnp.linspace(-3.0, 3.0, 7)
  counts = np.asarray(OF_PIXELS(location, jnp.full(7, log_scale)), np.int64)
  assert (counts.sum(axis=-1) == TOTAL).all() and counts.min() >= 1


def test_pixel_nats_agree_with_the_frequencies():
  rng = np.random.default_rng(0)
  location = jnp.asarray(rng.normal(size=500), jnp.float32)
  log_scale = jnp.asarray(rng.uniform(-5, 0, size=500), jnp.float32)
  pixel = rng.integers(0, 256, 500).astype(np.uint8)
  nats = np.asarray(jax.jit(frequencies.pixel_nats)(location, log_scale, pixel))
  counts = np.asarray(OF_PIXELS(location, log_scale))[np.arange(500), pixel]
  likely = nats < 10
  assert likely.sum() > 100
  np.testing.assert_allclose(-np.log(counts / TOTAL)[likely], nats[likely], rtol=1e-3, atol=1e-3)


def test_frequencies_agree_with_the_likelihood_that_figures_use():
  """The compressor's tables and `likelihood.pixel_nll` integrate the same density over the same bins."""
  rng = np.random.default_rng(1)
  location = jnp.asarray(rng.normal(size=(40, 1)), jnp.float32)
  log_scale = jnp.asarray(rng.uniform(-5, 1, size=(40, 1)), jnp.float32)
  counts = np.asarray(OF_PIXELS(location, log_scale), np.float64)[:, 0]
  stats = jnp.concatenate([location, log_scale], axis=-1)[:, None].repeat(256, axis=1)
  pixels = jnp.arange(256, dtype=jnp.uint8)[None, :, None].repeat(40, axis=0)
  probs = np.exp(-np.asarray(jax.jit(likelihood.pixel_nll)(pixels, stats, -9.0), np.float64))[..., 0]
  np.testing.assert_allclose(counts / TOTAL, probs, atol=4e-7, rtol=2e-4)
