import numpy as np

from dalle_jax.reporting import heat

RNG = np.random.default_rng(0)


def test_colours_get_lighter_from_low_to_high():
  palette = heat.palette()
  assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
  light = palette @ [0.2126, 0.7152, 0.0722]
  assert (np.diff(light) > -1).all() and light[-1] > light[0] + 150
  np.testing.assert_array_equal(heat.colours(np.array([0, 0.5, 1, 2]), 1.0), palette[[0, 128, 255, 255]])


def test_maps_have_one_pixel_per_value_scaled_to_the_maximum_or_an_argument():
  values = np.array([[0.0, 0.1, 0.2], [0.0, 0.05, 0.1]])
  np.testing.assert_array_equal(np.asarray(heat.heat(values)), heat.colours(values, 0.2))
  np.testing.assert_array_equal(np.asarray(heat.heat(values, 1.0)), heat.colours(values, 1.0))
  np.testing.assert_array_equal(np.asarray(heat.heat(np.zeros((2, 2)))), heat.palette()[np.zeros((2, 2), int)])


def test_relative_positions_without_attention_are_grey():
  pixels = np.asarray(heat.offsets(np.array([[0.0, 0.04], [0.01, 0.0]])))
  np.testing.assert_array_equal(pixels[[0, 1], [0, 1]], [heat.BLIND] * 2)
  np.testing.assert_array_equal([pixels[0, 1], pixels[1, 0]], heat.palette()[[255, 128]])


def test_pictures_are_bright_where_values_are_large():
  picture = RNG.integers(0, 256, (8, 8, 3), np.uint8)
  lit = np.asarray(heat.lit(picture, np.array([[0.0, 0.3], [0.15, 0.0]])))
  np.testing.assert_array_equal(lit[:4, 4:], picture[:4, 4:])
  np.testing.assert_allclose(lit[:4, :4], heat.DARK * picture[:4, :4], atol=0.51)
  np.testing.assert_allclose(lit[4:, :4], (1 + heat.DARK) / 2 * picture[4:, :4], atol=0.51)


def _pixels(picture):
  return np.asarray(picture.convert('RGB')).astype(int)


def test_matrices_show_square_roots_of_weights_the_mask_and_the_end_of_the_text():
  mask = np.tri(100, dtype=bool)
  weights = np.where(mask, 1 / np.arange(1, 101)[:, None], 0)
  pixels = _pixels(heat.matrix(weights, mask, border=40))
  assert pixels.shape == (100, 100, 3)
  np.testing.assert_allclose(pixels[10, 90], heat.BLIND, atol=2)
  np.testing.assert_allclose(pixels[40, 3], heat.LINE, atol=2)
  np.testing.assert_allclose(pixels[99, 5], heat.palette()[round(255 * 0.1)], atol=2)
  np.testing.assert_allclose(pixels[0, 0], heat.palette()[255], atol=2)
  assert _pixels(heat.matrix(weights[:20, :20], mask[:20, :20])).shape == (160, 160, 3)


def test_long_matrices_show_the_largest_weight_of_each_block():
  mask = np.tri(600, dtype=bool)
  weights = np.zeros((600, 600))
  weights[500, 100] = 1.0
  pixels = _pixels(heat.matrix(weights, mask))
  assert pixels.shape == (200, 200, 3)
  np.testing.assert_allclose(pixels[500 // 3, 100 // 3], heat.palette()[255], atol=2)
  np.testing.assert_allclose(pixels[500 // 3, 101 // 3 + 1], heat.palette()[0], atol=2)
  np.testing.assert_allclose(pixels[0, 199], heat.BLIND, atol=2)
