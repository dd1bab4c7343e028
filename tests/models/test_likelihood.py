import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.models import likelihood

NO_FLOOR = -100.0


def _nll(x, mu, log_scale, floor=NO_FLOOR):
  x = jnp.asarray(x, jnp.float32)[:, None]
  stats = jnp.broadcast_to(jnp.asarray([mu, log_scale], jnp.float32), (len(x), 2))
  return np.asarray(likelihood.logit_laplace_nll(x, stats, floor))[:, 0]


@pytest.mark.parametrize('mu', [-1.5, 0.0, 0.7])
@pytest.mark.parametrize('scale', [0.05, 0.3, 0.8])
def test_logit_laplace_density_integrates_to_one(mu, scale):
  x = 1 / (1 + np.exp(-np.linspace(-12, 12, 40_001)))
  assert np.trapezoid(np.exp(-_nll(x, mu, np.log(scale))), x) == pytest.approx(1, abs=2e-3)


@given(st.floats(0.1, 0.9), st.floats(-3, 3), st.floats(-3, 1))
@settings(deadline=None)
def test_logit_laplace_nll_is_that_of_the_sigmoid_of_a_laplace_variable(x, mu, log_scale):
  b, logit = np.exp(log_scale), np.log(x / (1 - x))
  density = np.exp(-abs(logit - mu) / b) / (2 * b) / (x * (1 - x))
  assert _nll([x], mu, log_scale)[0] == pytest.approx(-np.log(density), rel=1e-4, abs=1e-4)


def test_statistics_are_locations_followed_by_log_scales():
  x = jnp.full((1, 3), 0.5)
  stats = jnp.array([[0.0, 1.0, 2.0, 0.0, 0.0, 0.0]])
  nll = likelihood.logit_laplace_nll(x, stats, NO_FLOOR)[0]
  np.testing.assert_allclose(nll - nll[0], [0, 1, 2], atol=1e-6)  # |logit 0.5 - mu| / 1


def test_minimum_log_scale_bounds_the_scale_and_stops_its_gradient():
  np.testing.assert_array_equal(_nll([0.3], 0.1, -50, -2.0), _nll([0.3], 0.1, -2.0, NO_FLOOR))

  def loss(log_scale):
    return likelihood.logit_laplace_nll(jnp.array([0.3]), jnp.stack([jnp.array(0.1), log_scale]), -2.0).sum()

  assert jax.grad(loss)(jnp.array(-3.0)) == 0
  assert jax.grad(loss)(jnp.array(-1.0)) != 0


def test_mapped_pixels_lie_in_the_papers_range_and_unmap_to_the_same_pixels():
  pixels = np.arange(256, dtype=np.uint8)
  mapped = likelihood.map_pixels(pixels)
  assert mapped.dtype == jnp.float32
  np.testing.assert_allclose(mapped[jnp.array([0, 255])], [0.1, 0.9], rtol=1e-6)
  np.testing.assert_array_equal(np.round(likelihood.unmap_pixels(mapped)), pixels)
  np.testing.assert_array_equal(likelihood.map_pixels(pixels.astype(np.float32)), mapped)


def test_unmap_pixels_clips_to_the_pixel_range():
  np.testing.assert_array_equal(likelihood.unmap_pixels(jnp.array([0.01, 0.99])), [0, 255])


def test_reconstruction_inverts_logit_and_map_for_any_scale():
  pixels = np.array([0, 1, 77, 128, 254, 255], np.float32)
  mapped = np.asarray(likelihood.map_pixels(pixels), np.float64)
  stats = np.concatenate([np.log(mapped / (1 - mapped)), np.linspace(-9, 9, 6)])
  np.testing.assert_allclose(likelihood.reconstruction(jnp.asarray(stats, jnp.float32)), pixels, atol=1e-3)


def test_normal_nll_matches_the_normal_density_around_the_reconstruction():
  x = np.array([0.2, 0.9])
  mu, scale = np.array([0.5, -1.0]), 0.3
  error = x - 1 / (1 + np.exp(-mu))
  density = np.exp(-(error**2) / (2 * scale**2)) / (scale * np.sqrt(2 * np.pi))
  stats = jnp.asarray(np.concatenate([mu, [7.0, -7.0]]), jnp.float32)  # the log-scales are ignored
  np.testing.assert_allclose(
    likelihood.normal_nll(jnp.asarray(x, jnp.float32), stats, scale), -np.log(density), rtol=1e-5
  )
