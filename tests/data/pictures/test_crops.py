from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle_jax.data.pictures import crops


def random_image(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('height, width', [(8, 8), (8, 14), (15, 8)])
def test_fit_averages_boxes_of_whole_pixels(height, width):
  image = random_image(height, width)
  top, left = (height - 8) // 2, (width - 8) // 2
  boxes = image[top : top + 8, left : left + 8].reshape(2, 4, 2, 4, 3).mean((1, 3))
  assert np.abs(crops.fit(image, 2) - boxes).max() <= 1


def test_fit_does_not_resample_an_image_of_the_right_size():
  image = random_image(6, 6)
  np.testing.assert_array_equal(crops.fit(image, 6), image)
  np.testing.assert_array_equal(crops.fit(random_image(6, 9), 6), random_image(6, 9)[:, 1:7])


def test_fit_enlarges_smoothly():
  image = np.zeros((2, 2, 3), np.uint8)
  image[:, 1] = 200
  large = crops.fit(image, 8)
  assert large.shape == (8, 8, 3)
  assert len(np.unique(large)) > 2  # nearest-neighbour interpolation would give two values
  assert (np.diff(large[..., 0].astype(int), axis=1) >= 0).all()


def test_random_crops_reach_every_offset_along_the_longer_side():
  image = np.broadcast_to(np.arange(7, dtype=np.uint8)[:, None, None], (7, 4, 3))
  rng = np.random.default_rng(0)
  offsets = {int(crops.fit(image, 4, 'random', rng)[0, 0, 0]) for _ in range(100)}
  assert offsets == {0, 1, 2, 3}
  assert crops.fit(image, 4, 'random')[0, 0, 0] == 1  # without a generator the crop is the center


def test_fit_refuses_an_unknown_crop():
  with pytest.raises(ValueError, match=r'config\.data\.crop'):
    crops.fit(random_image(4, 4), 4, 'top')


def _exact_means(image, size):
  """Means by brute force: repeats each pixel size x size times, so that new pixels are made of whole repeated ones."""
  side = len(image)
  repeated = image.repeat(size, axis=0).repeat(size, axis=1).astype(np.int64)
  sums = repeated.reshape(size, side, size, side, 3).sum((1, 3))
  return np.array([[[round(Fraction(int(v), side**2)) for v in pixel] for pixel in row] for row in sums], np.uint8)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_reducing_takes_exact_means_over_areas(side, size, seed):
  size = min(side, size)
  # Images with few different values have many exact halves, which round to even.
  image = random_image(side, side, seed) if seed % 2 else random_image(side, side, seed) % 2
  np.testing.assert_array_equal(crops.resize(image, size), _exact_means(image, size))


def test_area_means_agree_with_a_calculation_by_hand():
  image = np.array([0, 90, 30], np.uint8)[None, :, None] * np.ones((3, 1, 3), np.uint8)
  # Each of the two new pixels covers 1.5 old ones: (0 + 90 / 2) / 1.5 and (90 / 2 + 30) / 1.5.
  np.testing.assert_array_equal(crops.resize(image, 2)[0, :, 0], [30, 50])
  np.testing.assert_array_equal(crops.resize(image, 1)[0, :, 0], [40])


@pytest.mark.parametrize('shade', [0, 1, 255])
def test_images_of_one_shade_keep_it(shade):
  for size in (1, 7, 300, 999):
    assert (crops.resize(np.full((1000, 1000, 3), shade, np.uint8), size) == shade).all()


def test_box_resampling_is_that_of_pillow():
  image = random_image(9, 9)
  means = image.reshape(3, 3, 3, 3, 3).mean((1, 3))
  assert np.abs(crops.resize(image, 3, 'box') - means).max() <= 1
  box_means = crops.fit(random_image(9, 9), 4, resampling='box')
  assert (box_means != crops.fit(random_image(9, 9), 4)).any()
  np.testing.assert_array_equal(box_means, Image.fromarray(random_image(9, 9)).resize((4, 4), Image.Resampling.BOX))


@pytest.mark.parametrize(('crop', 'side'), [('center', 64), ('random', 64), ('paper_dvae', 96), ('paper_prior', 72)])
def test_draft_needs_as_many_pixels_as_the_crop_can_use(crop, side):
  assert crops.smallest_side(64, crop, 'draft') == side
  assert crops.smallest_side(64, crop, 'area') is crops.smallest_side(64, crop, 'box') is None
  if crop.startswith('paper'):
    large = random_image(640, 700)
    shapes = [crops._paper_square(large, 64, crop, np.random.default_rng(seed)).shape[0] for seed in range(300)]
    assert max(shapes) == side


def test_large_areas_are_summed_without_overflow():
  white = np.full((4099, 4097, 3), 255, np.uint8)
  assert (crops.reduce_shorter_side(white, 2) == 255).all()


def test_fit_refuses_an_unknown_resampling():
  with pytest.raises(ValueError, match=r'config\.data\.resampling is .nearest'):
    crops.fit(random_image(4, 4), 2, resampling='nearest')


def coordinates(height, width):
  """An image whose first two channels hold each pixel's row and column."""
  rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing='ij')
  return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


@settings(max_examples=60)
@given(st.integers(8, 60), st.integers(8, 60), st.sampled_from(['paper_dvae', 'paper_prior']), st.integers(0, 2**31))
def test_paper_crops_have_the_requested_size_and_lie_inside_the_image(height, width, crop, seed):
  image = crops.fit(coordinates(height, width), 16, crop, np.random.default_rng(seed))
  assert image.shape == (16, 16, 3) and image.dtype == np.uint8
  assert np.ptp(image[..., 0]) <= height and image[..., 0].max() < height
  again = crops.fit(coordinates(height, width), 16, crop, np.random.default_rng(seed))
  np.testing.assert_array_equal(image, again)


def _scales(crop, side, size=16):
  """The sizes to which squares of `side` pixels are resized for crops of `size`."""
  image = np.zeros((side, side, 3), np.uint8)
  rng = np.random.default_rng(0)
  return {crops._paper_square(image, size, crop, rng).shape[0] for _ in range(300)}


def test_random_scales_are_those_of_the_listings():
  # At 256 pixels, with s the side: min(s, 288) to min(s, 384) for the dVAE, 256 to min(s, 288) for the prior.
  assert _scales('paper_dvae', 40) == set(range(18, 25))
  assert _scales('paper_dvae', 21) == set(range(18, 22))
  assert _scales('paper_dvae', 17) == {17}
  assert _scales('paper_prior', 40) == {16, 17, 18}
  assert _scales('paper_prior', 17) == {16, 17}
  assert _scales('paper_dvae', 12) == _scales('paper_prior', 12) == {16}
  assert _scales('paper_dvae', 60, 21) == set(range(24, 33))  # round(23.6) to round(31.5); halves round to even


class Choices:
  """A fake random generator that records the bounds it receives and returns the lowest or the highest value."""

  def __init__(self, highest):
    self.highest, self.bounds = highest, []

  def integers(self, low, high=None, size=None):
    low, high = (0, low) if high is None else (low, high)
    self.bounds.append((int(low), int(high)))
    value = high - 1 if self.highest else low
    return np.full(size, value) if size else value


@pytest.mark.parametrize('highest', [False, True])
@pytest.mark.parametrize('height, width', [(300, 400), (400, 300), (270, 275), (900, 1000)])
def test_random_bounds_are_those_of_the_listings_at_256(height, width, highest):
  """The expected bounds are transcribed from Listings 1 and 2. Upper bounds are exclusive, as in the listings."""
  side, image = min(height, width), np.zeros((height, width, 3), np.uint8)
  max_offsets = {'h': height - side, 'w': width - side}

  choices = Choices(highest)
  crops.fit(image, 256, 'paper_dvae', choices)
  scale = (min(side, round(9 / 8 * 256)), min(side, round(12 / 8 * 256)) + 1)
  chosen = scale[1] - 1 if highest else scale[0]
  assert choices.bounds == [(0, max_offsets['h'] + 1), (0, max_offsets['w'] + 1), scale, (0, chosen - 256 + 1)]

  choices = Choices(highest)
  crops.fit(image, 256, 'paper_prior', choices)
  offsets = [(3 * offset // 8, max(3 * offset // 8 + 1, 5 * offset // 8)) for offset in max_offsets.values()]
  scale = (256, min(side, round(9 / 8 * 256)) + 1)
  chosen = scale[1] - 1 if highest else scale[0]
  assert choices.bounds == [*offsets, scale, (0, chosen - 256 + 1)]


def test_prior_crops_lie_near_the_middle_and_dvae_crops_anywhere():
  image, rng = coordinates(16, 96), np.random.default_rng(1)
  offsets = {crop: [crops._paper_square(image, 16, crop, rng)[0, 0, 1] for _ in range(600)] for crop in crops.CROPS[2:]}
  # The squares have the final size of 16 pixels already, so they are not resampled. The first column's value is
  # therefore the offset, which is at most 80.
  assert set(offsets['paper_prior']) == set(range(30, 50))
  assert max(np.bincount(offsets['paper_prior'])) < 60  # the expected count is 30
  assert min(offsets['paper_dvae']) == 0 and max(offsets['paper_dvae']) == 80


def test_paper_crops_equal_golden_values():
  """Another order of the random choices would change every training run."""
  image = random_image(50, 70)
  cropped = {crop: crops.fit(image, 16, crop, np.random.default_rng(5)) for crop in crops.CROPS[2:]}
  golden = {'paper_dvae': (97819, [164, 106, 164]), 'paper_prior': (98197, [154, 139, 113])}
  assert {crop: (int(x.sum()), x[3, 5].tolist()) for crop, x in cropped.items()} == golden


def test_without_a_generator_every_crop_is_the_center():
  image = random_image(20, 31)
  for crop in crops.CROPS:
    np.testing.assert_array_equal(crops.fit(image, 10, crop), crops.fit(image, 10))


@pytest.mark.parametrize(('height', 'width'), [(8, 8), (12, 8), (8, 17), (31, 40), (5, 6)])
def test_fit_bicubic_resizes_the_shorter_side_and_crops_the_middle(height, width):
  image = random_image(height, width)
  square = crops.fit_bicubic(image, 8)
  assert square.shape == (8, 8, 3) and square.dtype == np.uint8
  new_height, new_width = 8 * height // min(height, width), 8 * width // min(height, width)
  resized = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))
  top, left = round((new_height - 8) / 2), round((new_width - 8) / 2)
  np.testing.assert_array_equal(square, resized[top : top + 8, left : left + 8])
  if (height, width) == (8, 8):
    np.testing.assert_array_equal(square, image)
