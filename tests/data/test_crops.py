from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle_jax.data import crops


def random_image(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('height, width', [(8, 8), (8, 14), (15, 8)])
def test_fit_averages_whole_boxes(height, width):
  image = random_image(height, width)
  top, left = (height - 8) // 2, (width - 8) // 2
  boxes = image[top : top + 8, left : left + 8].reshape(2, 4, 2, 4, 3).mean((1, 3))
  assert np.abs(crops.fit(image, 2) - boxes).max() <= 1


def test_fit_leaves_a_picture_of_the_right_size_alone():
  image = random_image(6, 6)
  np.testing.assert_array_equal(crops.fit(image, 6), image)
  np.testing.assert_array_equal(crops.fit(random_image(6, 9), 6), random_image(6, 9)[:, 1:7])


def test_fit_enlarges_smoothly():
  image = np.zeros((2, 2, 3), np.uint8)
  image[:, 1] = 200
  large = crops.fit(image, 8)
  assert large.shape == (8, 8, 3)
  assert len(np.unique(large)) > 2  # nearest neighbours would give two values
  assert (np.diff(large[..., 0].astype(int), axis=1) >= 0).all()


def test_fit_random_crops_cover_the_longer_side():
  image = np.broadcast_to(np.arange(7, dtype=np.uint8)[:, None, None], (7, 4, 3))
  rng = np.random.default_rng(0)
  offsets = {int(crops.fit(image, 4, 'random', rng)[0, 0, 0]) for _ in range(100)}
  assert offsets == {0, 1, 2, 3}
  assert crops.fit(image, 4, 'random')[0, 0, 0] == 1  # no generator: the centre


def test_fit_refuses_an_unknown_crop():
  with pytest.raises(ValueError, match=r'config\.data\.crop'):
    crops.fit(random_image(4, 4), 4, 'top')


def _exact_means(image, size):
  """Brute force: each old pixel is cut into size x size parts, so that new pixels are whole numbers of parts."""
  side = len(image)
  parts = image.repeat(size, axis=0).repeat(size, axis=1).astype(np.int64)
  sums = parts.reshape(size, side, size, side, 3).sum((1, 3))
  return np.array([[[round(Fraction(int(v), side**2)) for v in pixel] for pixel in row] for row in sums], np.uint8)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_resizing_down_takes_exact_means_over_areas(side, size, seed):
  size = min(side, size)
  # Few different values make many exact halves, which are rounded to even.
  image = random_image(side, side, seed) if seed % 2 else random_image(side, side, seed) % 2
  np.testing.assert_array_equal(crops.resize(image, size), _exact_means(image, size))


def test_areas_by_hand():
  image = np.array([0, 90, 30], np.uint8)[None, :, None] * np.ones((3, 1, 3), np.uint8)
  # Two new pixels of one and a half old ones: (0 + 90 / 2) / 1.5 and (90 / 2 + 30) / 1.5.
  np.testing.assert_array_equal(crops.resize(image, 2)[0, :, 0], [30, 50])
  np.testing.assert_array_equal(crops.resize(image, 1)[0, :, 0], [40])


@pytest.mark.parametrize('shade', [0, 1, 255])
def test_flat_pictures_stay_flat(shade):
  for size in (1, 7, 300, 999):
    assert (crops.resize(np.full((1000, 1000, 3), shade, np.uint8), size) == shade).all()


def test_boxes_of_whole_pixels():
  image = random_image(9, 9)
  means = image.reshape(3, 3, 3, 3, 3).mean((1, 3))
  assert np.abs(crops.resize(image, 3, 'box') - means).max() <= 1
  other = crops.fit(random_image(9, 9), 4, resampling='box')
  assert (other != crops.fit(random_image(9, 9), 4)).any()
  np.testing.assert_array_equal(other, Image.fromarray(random_image(9, 9)).resize((4, 4), Image.Resampling.BOX))


def test_fit_refuses_an_unknown_resampling():
  with pytest.raises(ValueError, match=r'config\.data\.resampling is .nearest'):
    crops.fit(random_image(4, 4), 2, resampling='nearest')


def coordinates(height, width):
  """A picture whose pixels tell where they are: row and column in the first two channels."""
  rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing='ij')
  return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


@settings(max_examples=60)
@given(st.integers(8, 60), st.integers(8, 60), st.sampled_from(['paper_dvae', 'paper_prior']), st.integers(0, 2**31))
def test_paper_crops_have_the_size_and_lie_in_the_picture(height, width, crop, seed):
  image = crops.fit(coordinates(height, width), 16, crop, np.random.default_rng(seed))
  assert image.shape == (16, 16, 3) and image.dtype == np.uint8
  assert np.ptp(image[..., 0]) <= height and image[..., 0].max() < height
  again = crops.fit(coordinates(height, width), 16, crop, np.random.default_rng(seed))
  np.testing.assert_array_equal(image, again)


def _scales(crop, side, size=16):
  """Sizes to which squares of `side` pixels are brought for crops of `size`."""
  image = np.zeros((side, side, 3), np.uint8)
  rng = np.random.default_rng(0)
  return {crops._paper_square(image, size, crop, rng).shape[0] for _ in range(300)}


def test_scales_are_those_of_the_listings():
  # At 256 pixels: the dVAE's from min(s, 288) to min(s, 384), the prior's from 256 to min(s, 288).
  assert _scales('paper_dvae', 40) == set(range(18, 25))
  assert _scales('paper_dvae', 21) == set(range(18, 22))
  assert _scales('paper_dvae', 17) == {17}
  assert _scales('paper_prior', 40) == {16, 17, 18}
  assert _scales('paper_prior', 17) == {16, 17}
  assert _scales('paper_dvae', 12) == _scales('paper_prior', 12) == {16}
  assert _scales('paper_dvae', 60, 21) == set(range(24, 33))  # round(23.6) to round(31.5), halves to even


class Choices:
  """A generator's stand-in which notes the bounds it is given, and takes the lowest or the highest value."""

  def __init__(self, highest):
    self.highest, self.bounds = highest, []

  def integers(self, low, high=None, size=None):
    low, high = (0, low) if high is None else (low, high)
    self.bounds.append((int(low), int(high)))
    value = high - 1 if self.highest else low
    return np.full(size, value) if size else value


@pytest.mark.parametrize('highest', [False, True])
@pytest.mark.parametrize('height, width', [(300, 400), (400, 300), (270, 275), (900, 1000)])
def test_the_bounds_are_those_of_the_listings_at_256(height, width, highest):
  """Listings 1 and 2, transcribed; a range has its lower bound and not its upper one, as theirs have."""
  side, image = min(height, width), np.zeros((height, width, 3), np.uint8)
  room = {'h': height - side, 'w': width - side}

  choices = Choices(highest)
  crops.fit(image, 256, 'paper_dvae', choices)
  scale = (min(side, round(9 / 8 * 256)), min(side, round(12 / 8 * 256)) + 1)
  chosen = scale[1] - 1 if highest else scale[0]
  assert choices.bounds == [(0, room['h'] + 1), (0, room['w'] + 1), scale, (0, chosen - 256 + 1)]

  choices = Choices(highest)
  crops.fit(image, 256, 'paper_prior', choices)
  places = [(3 * slack // 8, max(3 * slack // 8 + 1, 5 * slack // 8)) for slack in room.values()]
  scale = (256, min(side, round(9 / 8 * 256)) + 1)
  chosen = scale[1] - 1 if highest else scale[0]
  assert choices.bounds == [*places, scale, (0, chosen - 256 + 1)]


def test_the_priors_square_is_near_the_middle_and_the_dvaes_anywhere():
  image, rng = coordinates(16, 96), np.random.default_rng(1)
  offsets = {crop: [crops._paper_square(image, 16, crop, rng)[0, 0, 1] for _ in range(600)] for crop in crops.CROPS[2:]}
  # A side of 16 allows the size 16 only: nothing is resampled, and the first column is the offset, out of 80.
  assert set(offsets['paper_prior']) == set(range(30, 50))
  assert max(np.bincount(offsets['paper_prior'])) < 60  # of 30 expected
  assert min(offsets['paper_dvae']) == 0 and max(offsets['paper_dvae']) == 80


def test_paper_crops_stay_what_they_are():
  """Golden values: a change of the order in which random numbers are drawn would change every run."""
  image = random_image(50, 70)
  drawn = {crop: crops.fit(image, 16, crop, np.random.default_rng(5)) for crop in crops.CROPS[2:]}
  golden = {'paper_dvae': (97819, [164, 106, 164]), 'paper_prior': (98197, [154, 139, 113])}
  assert {crop: (int(x.sum()), x[3, 5].tolist()) for crop, x in drawn.items()} == golden


def test_without_a_generator_every_crop_is_the_centre():
  image = random_image(20, 31)
  for crop in crops.CROPS:
    np.testing.assert_array_equal(crops.fit(image, 10, crop), crops.fit(image, 10))


@pytest.mark.parametrize(('height', 'width'), [(8, 8), (12, 8), (8, 17), (31, 40), (5, 6)])
def test_clips_preparation_resizes_the_shorter_side_and_takes_the_middle(height, width):
  image = random_image(height, width)
  found = crops.fit_bicubic(image, 8)
  assert found.shape == (8, 8, 3) and found.dtype == np.uint8
  tall, wide = 8 * height // min(height, width), 8 * width // min(height, width)
  whole = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC))
  top, left = round((tall - 8) / 2), round((wide - 8) / 2)
  np.testing.assert_array_equal(found, whole[top : top + 8, left : left + 8])
  if (height, width) == (8, 8):
    np.testing.assert_array_equal(found, image)
