import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.compression import pictures


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 4, 8]))
def test_tiles_join_to_the_picture_and_are_padded_with_its_edge(height, width, size):
  image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
  tiles = pictures.cut(image, size)
  sizes = pictures.tile_sizes(height, width, size)
  assert tiles.shape == (len(sizes), size, size, 3)
  assert sum(rows * columns for rows, columns in sizes) == height * width
  np.testing.assert_array_equal(pictures.join(tiles, height, width), image)
  for tile, (rows, columns) in zip(tiles, sizes, strict=True):  # the padding repeats the picture's edge
    np.testing.assert_array_equal(tile[rows:], np.broadcast_to(tile[rows - 1 : rows], tile[rows:].shape))
    np.testing.assert_array_equal(
      tile[:, columns:], np.broadcast_to(tile[:, columns - 1 : columns], tile[:, columns:].shape)
    )


LISTING = {'lossless': True, 'single': False, 'size': 8, 'pictures': [['a/b.png', 8, 9], ['c.png', 1, 1]]}


def test_names_and_shapes_are_read_from_a_header():
  assert pictures.listing(LISTING, 8) == (['a/b.png', 'c.png'], [(8, 9), (1, 1)])


@pytest.mark.parametrize(
  'change',
  [
    *({'pictures': [[name, 8, 8]]} for name in ('../up.png', '/root.png', 'a\\b.png', '', 'a/../../b.png', 3)),
    *({'pictures': [['a.png', *sides]]} for sides in ((0, 8), (8, 1 << 21), (1 << 16, 1 << 16), ('8', 8), (8,))),
    {'pictures': [['a.png', 8, 8], ['a.png/b.png', 8, 8]]},
    {'pictures': [['x' * 300 + '.png', 8, 8]]},
    {'pictures': []},
    {'pictures': None},
    {'pictures': [['a.png', 8, 8], ['a.png', 8, 8]]},
    {'single': True},
    {'single': 1},
    {'lossless': None},
    {'size': 16},
  ],
  ids=str,
)
def test_headers_with_invalid_values_are_refused(change):
  with pytest.raises(ValueError, match='list of pictures cannot be used'):
    pictures.listing({**LISTING, **change}, 8)


@pytest.mark.parametrize(
  ('name', 'message'),
  [('a\0b', 'zero bytes'), ('a/' * 300 + 'b', '256 names'), ('a' * 5000, '4096 bytes'), (5, 'a name must be'),
   ('x' * 10**6, 'a name must be'), ('\ud800', 'surrogates')],
  ids=lambda value: ascii(value)[:20],
)  # fmt: skip
def test_names_that_cannot_be_written_are_refused_in_few_words(name, message):
  settings = {'pictures': [[name, 8, 8]], 'size': 8, 'lossless': True, 'single': False}
  with pytest.raises(ValueError, match=message) as refusal:
    pictures.listing(settings, 8)
  assert len(str(refusal.value)) < 700 and str(refusal.value).isprintable()


def test_pictures_beyond_the_limit_are_refused():
  settings = {'pictures': [['a', 1 << 15, 1 << 14]], 'size': 8, 'lossless': True, 'single': True}
  assert pictures.listing(settings, 8) == (['a'], [(1 << 15, 1 << 14)])
  with pytest.raises(ValueError, match=r'32,768 x 16,384 pixels, more than the limit of 1,000; .*--max_image_pixels'):
    pictures.listing(settings, 8, 1000)
