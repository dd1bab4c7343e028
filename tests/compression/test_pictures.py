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
