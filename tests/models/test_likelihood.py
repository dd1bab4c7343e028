import decimal
from decimal import Decimal

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


_pixel_nll = jax.jit(likelihood.pixel_nll)
ALL_PIXELS = np.arange(256, dtype=np.uint8)


def _bin_nll(mu, log_scale, floor=NO_FLOOR):
  """-ln p of the 256 pixel values for arrays of mu and ln b [N]: [N, 256]."""
  stats = jnp.stack(
    [jnp.broadcast_to(jnp.asarray(s, jnp.float32)[:, None], (len(s), 256)) for s in (mu, log_scale)], -1
  )
  pixels = jnp.broadcast_to(ALL_PIXELS[:, None], (len(mu), 256, 1))
  return np.asarray(_pixel_nll(pixels, stats, floor))[..., 0]


def _exact_bin_nll(mu, log_scale):
  """The same by 60-digit arithmetic."""
  with decimal.localcontext(prec=60):
    edges = [Decimal('0.1') + Decimal('0.8') / 255 * (value + Decimal('0.5')) for value in range(255)]
    scaled = [((x / (1 - x)).ln() - Decimal(float(mu))) / Decimal(float(log_scale)).exp() for x in edges]
    below = [d.exp() / 2 if d < 0 else 1 - (-d).exp() / 2 for d in scaled]
    masses = np.diff(np.array([Decimal(0), *below, Decimal(1)]))
    return np.array([float(-mass.ln()) if mass else np.inf for mass in masses])


MUS = np.array([-40, -5, -2.1972246, -2.18, -1, -0.001, 0, 0.3, 1.99, 2.1972246, 6, 300], np.float32)


@pytest.mark.parametrize('log_scale', [-30.0, -9.0, -4.6, -1.5, 0.0, 3.0, 12.0, 30.0])
def test_probabilities_of_the_256_pixel_values_sum_to_one(log_scale):
  nll = _bin_nll(MUS, np.full(len(MUS), log_scale, np.float32))
  assert (nll >= 0).all() and np.isfinite(nll).all()
  np.testing.assert_allclose(np.exp(-nll.astype(np.float64)).sum(axis=1), 1, atol=3e-5)


@given(st.floats(-8, 8, width=32), st.floats(-5, 4, width=32))
@settings(deadline=None, max_examples=20)
def test_probabilities_match_exact_arithmetic_also_where_they_underflow(mu, log_scale):
  nll, exact = _bin_nll(np.array([mu]), np.array([log_scale]))[0], _exact_bin_nll(mu, log_scale)
  known = exact < 120  # the 60 digits of the exact values hold these
  np.testing.assert_allclose(nll[known], exact[known], rtol=2e-5, atol=1e-5)


def test_black_predicted_exactly_has_a_probability_below_one():
  black = jnp.zeros((1, 1), jnp.uint8)
  stats = jnp.array([[np.log(0.1 / 0.9), -9.0]], jnp.float32)
  density = float(likelihood.logit_laplace_nll(likelihood.map_pixels(black), stats, -4.6)[0, 0])
  assert np.exp(-density) * 0.8 / 255 == pytest.approx(1.73, abs=0.01)  # the density times the bin's width
  edge = 0.1 + 0.8 / 255 / 2
  distance = (np.log(edge / (1 - edge)) - np.log(0.1 / 0.9)) / np.exp(-4.6)
  probability = float(np.exp(-_pixel_nll(black, stats, -4.6)[0, 0]))
  assert probability == pytest.approx(1 - 0.5 * np.exp(-distance), abs=1e-5) and probability < 1


def test_the_nll_of_wide_bins_approaches_the_density_times_their_width():
  """Where the density hardly changes within a bin, both agree."""
  pixels = jnp.asarray(np.arange(60, 200, dtype=np.uint8)[:, None])
  stats = jnp.broadcast_to(jnp.array([3.0, 0.0], jnp.float32), (140, 2))
  density = likelihood.logit_laplace_nll(likelihood.map_pixels(pixels), stats, NO_FLOOR)
  np.testing.assert_allclose(_pixel_nll(pixels, stats, NO_FLOOR), density - np.log(0.8 / 255), atol=2e-5, rtol=2e-5)


def test_gradients_of_bin_probabilities_are_finite_and_match_differences():
  mu, log_scale = (np.repeat(values, 3) for values in (np.linspace(-4, 4, 7), np.linspace(-3, 2, 7)))
  pixels = jnp.asarray(np.tile(np.array([0, 100, 255], np.uint8), 7)[:, None])

  def total(stats, pixels):
    return _pixel_nll(pixels, stats, NO_FLOOR).sum()

  stats = jnp.asarray(np.stack([mu, log_scale], -1), jnp.float32)
  grad = jax.jit(jax.grad(total))
  grads = np.asarray(grad(stats, pixels))
  assert np.isfinite(grads).all()
  step = 2**-7
  for axis in range(2):
    shift = jnp.zeros_like(stats).at[:, axis].set(step)
    both = [_pixel_nll(pixels, stats + sign * shift, NO_FLOOR)[:, 0] for sign in (1, -1)]
    np.testing.assert_allclose(grads[:, axis], (both[0] - both[1]) / (2 * step), rtol=0.02, atol=0.02)
  extreme = jnp.array([[s, t] for s in np.linspace(-300, 300, 7) for t in (-90, 0, 90)], jnp.float32)
  assert np.isfinite(grad(extreme, pixels)).all()


def test_bins_without_a_scale_stay_nan_so_that_damage_is_seen():
  assert np.isnan(_pixel_nll(jnp.array([[7]], jnp.uint8), jnp.array([[np.nan, 0.0]]), -4.6)).all()


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
