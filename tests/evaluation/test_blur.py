import numpy as np

from dalle_jax.evaluation.blur import gaussian


def test_a_point_is_blurred_to_a_gaussian():
  image = np.zeros((2, 31, 31, 3), np.uint8)
  image[0, 15, 15, 1] = 255
  blurred = gaussian(image, 2.0)
  rows, columns = np.mgrid[-15:16, -15:16]
  expected = 255 * np.exp(-(rows**2 + columns**2) / 8) / (2 * np.pi * 4)
  np.testing.assert_allclose(blurred[0, :, :, 1], expected, atol=0.6)
  assert not blurred[1].any() and not blurred[0, :, :, 0].any()


def test_a_uniform_image_and_a_radius_of_zero_change_nothing():
  even = np.full((1, 8, 8, 3), 77, np.uint8)
  np.testing.assert_array_equal(gaussian(even, 8), even)
  noise = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
  np.testing.assert_array_equal(gaussian(noise, 0), noise)
