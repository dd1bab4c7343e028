"""The sizes to choose from, and the choice of one by measured times."""

import itertools

import pytest

from dalle_jax.jobs.choose.scales import (
  PICTURE_SCALES,
  PRIOR_SCALES,
  PictureScale,
  minutes,
  pick,
  picture_scales,
  prior_scales,
)

SMALL = PictureScale(32, 8, 1, 32, 0, 100)
MIDDLE = PictureScale(64, 8, 2, 32, 0, 200)
LARGE = PictureScale(64, 16, 2, 64, 0, 400)


def test_sizes_grow_and_fit_each_other():
  for scale in PICTURE_SCALES:
    assert scale.patch_size * 2 ** (scale.num_groups - 1) * scale.grid == scale.image_size
  for scales in (PICTURE_SCALES, PRIOR_SCALES):
    assert scales[0].pictures == 0
    for smaller, larger in itertools.pairwise(scales):
      assert smaller.pictures <= larger.pictures
      assert smaller.steps < larger.steps
      assert smaller.work <= larger.work
  assert all(scale.embed_dim % scale.num_heads == 0 for scale in PRIOR_SCALES)


@pytest.mark.parametrize(
  ('side', 'pictures', 'sizes'),
  [
    (16, 10**6, [(32, 8)]),  # enlarging gains nothing
    (52, 10**6, [(32, 8), (64, 8), (64, 16)]),
    (128, 90, [(32, 8), (64, 8)]),
    (128, 2_780, [(32, 8), (64, 8), (64, 16), (128, 16)]),
    (512, 10**6, [(32, 8), (64, 8), (64, 16), (128, 16), (256, 32)]),
  ],
)
def test_pictures_limit_the_sizes(side, pictures, sizes):
  assert [(scale.image_size, scale.grid) for scale in picture_scales(side, pictures)] == sizes


@pytest.mark.parametrize(
  ('image_size', 'shapes'),
  [
    (32, [(8, 1, 3)]),
    (48, [(12, 1, 3)]),
    (96, [(12, 2, 3), (24, 2, 2)]),
    (50, [(25, 1, 2)]),
    (33, [(33, 1, 1)]),
    (16, [(4, 1, 3)]),
  ],
)
def test_a_given_image_size_determines_the_grid(image_size, shapes):
  scales = picture_scales(20, 1_500, image_size)
  assert [(scale.grid, scale.patch_size, scale.num_groups) for scale in scales] == shapes
  assert {scale.image_size for scale in scales} == {image_size}
  assert all(scale.patch_size * 2 ** (scale.num_groups - 1) * scale.grid == image_size for scale in scales)


@pytest.mark.parametrize(('pictures', 'width'), [(90, 128), (2_780, 192), (23_000, 256), (10**6, 768), (10**7, 1024)])
def test_pictures_limit_the_transformer(pictures, width):
  assert prior_scales(pictures)[-1].embed_dim == width


def test_the_largest_size_that_fits_is_taken():
  times = {SMALL: 0.01, MIDDLE: 0.02, LARGE: 0.05}
  result = pick([SMALL, MIDDLE, LARGE], 10.0, times.get, is_cpu=False)
  assert (result.scale, result.seconds) == (MIDDLE, 0.02)
  assert result.reason == ('at least 200 steps of 0.02 s fit into 10 s; 64 pixels with 16 x 16 codes would need 20 s')
  assert pick([SMALL, MIDDLE, LARGE], 20.0, times.get, is_cpu=False).scale == LARGE


def test_hopeless_sizes_are_not_measured():
  measured = []

  def seconds_of(scale):
    measured.append(scale)
    return 0.1

  result = pick([SMALL, LARGE], 60.0, seconds_of, is_cpu=True)  # 0.6 x 0.1 s x 4 x 400 steps = 96 s
  assert measured == [SMALL]
  assert result.reason.endswith('64 pixels with 16 x 16 codes would need more than 1.6 min')
  assert pick([SMALL, LARGE], 60.0, seconds_of, is_cpu=False).scale == LARGE  # 0.05 x 0.1 s x 4 x 400 steps = 8 s


def test_memory_limits_the_size():
  result = pick([SMALL, MIDDLE], 100.0, {SMALL: 0.01, MIDDLE: None}.get, is_cpu=True)
  assert result.scale == SMALL
  assert '64 pixels with 8 x 8 codes would not fit into memory' in result.reason
  with pytest.raises(ValueError, match=r'smallest model \(32 pixels with 8 x 8 codes\).*batch_size'):
    pick([SMALL], 100.0, {SMALL: None}.get, is_cpu=True)


def test_the_smallest_size_is_taken_although_it_is_slow():
  result = pick([SMALL, MIDDLE], 1.0, lambda scale: 1.0, is_cpu=True)
  assert result.scale == SMALL
  assert result.reason.startswith('at least 100 steps of 1 s do not fit into 1 s')


@pytest.mark.parametrize(('seconds', 'text'), [(3.14, '3.1 s'), (90, '1.5 min'), (5_000, '83 min'), (36_000, '10 h')])
def test_times_in_words(seconds, text):
  assert minutes(seconds) == text
