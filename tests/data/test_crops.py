import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@given(st.integers(1, 24), st.integers(1, 24))
def test_resizing_down_takes_exact_means_over_areas(side, size):
  size = min(side, size)
  image = random_image(side, side)
  # Each old pixel is cut into size x size parts, so that new pixels are whole numbers of parts.
  fine = image.repeat(size, axis=0).repeat(size, axis=1).astype(np.float64)
  means = fine.reshape(size, side, size, side, 3).mean((1, 3))
  assert np.abs(crops.resize(image, size) - means).max() <= 0.5 + 1e-3


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


def _scales(crop, side):
  """Sizes to which squares of `side` pixels are brought, of 16-pixel crops."""
  image = np.zeros((side, side, 3), np.uint8)
  rng = np.random.default_rng(0)
  return {crops._paper_square(image, 16, crop, rng).shape[0] for _ in range(300)}


def test_scales_are_those_of_the_listings():
  # At 256 pixels: the dVAE's from min(s, 288) to min(s, 384), the prior's from 256 to min(s, 288).
  assert _scales('paper_dvae', 40) == set(range(18, 25))
  assert _scales('paper_dvae', 21) == set(range(18, 22))
  assert _scales('paper_dvae', 17) == {17}
  assert _scales('paper_prior', 40) == {16, 17, 18}
  assert _scales('paper_prior', 17) == {16, 17}
  assert _scales('paper_dvae', 12) == _scales('paper_prior', 12) == {16}


def test_the_priors_square_is_near_the_middle_and_the_dvaes_anywhere():
  image, rng = coordinates(16, 96), np.random.default_rng(1)
  offsets = {crop: [crops._paper_square(image, 16, crop, rng)[0, 0, 1] for _ in range(400)] for crop in crops.CROPS[2:]}
  # A side of 16 allows the size 16 only: nothing is resampled, and the first column is the offset, out of 80.
  assert set(offsets['paper_prior']) == set(range(30, 50))
  assert min(offsets['paper_dvae']) == 0 and max(offsets['paper_dvae']) == 80


def test_without_a_generator_every_crop_is_the_centre():
  image = random_image(20, 31)
  for crop in crops.CROPS:
    np.testing.assert_array_equal(crops.fit(image, 10, crop), crops.fit(image, 10))
