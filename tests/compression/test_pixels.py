import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.compression import frequencies, pixels
from dalle_jax.compression.coders import CODERS
from dalle_jax.compression.frequencies import TOTAL

SIZE = 6


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(pixels.WEIGHTS.tolist()))
def test_a_mixture_is_a_distribution_with_the_requested_share_of_the_neighbours(seed, weight):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(4, 256)).astype(np.float32) * rng.choice([0.1, 3.0, 50.0])
  sums = frequencies.cumulative(np.asarray(frequencies.of_logits(logits)))
  near = rng.integers(0, 256, (4, 2)).astype(np.uint8)
  near[3] = near[3, 0]
  mixed = pixels.mix(sums, np.full(4, weight), near)
  assert (mixed[:, 0] == 0).all() and (mixed[:, -1] == TOTAL).all() and (np.diff(mixed) >= 1).all()
  expected = np.diff(sums) * (1 - weight / 1024)
  for row, values in zip(expected, near, strict=True):
    for value in values:
      row[value] += TOTAL * weight / 2048
  np.testing.assert_allclose(
    np.diff(mixed), expected, atol=300
  )  # rounding, and the least frequency of 1 for every value


def test_neighbours_are_the_values_to_the_left_and_above():
  tile = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
  near = pixels.neighbours(tile)
  assert near[1, 1].tolist() == [[9, 3], [10, 4], [11, 5]]
  assert near[0, 2].tolist() == [[3, 3], [4, 4], [5, 5]]  # the first row has no values above
  assert near[2, 0].tolist() == [[9, 9], [10, 10], [11, 11]]
  assert near[0, 0].tolist() == [[255, 255]] * 3


def _coded(tiles, location, log_scale, sizes, coder):
  encoder = CODERS[coder][0]()
  bits = pixels.PixelCoder().encode(location, log_scale, tiles, sizes, encoder)
  return encoder.finish(), bits


@pytest.mark.parametrize('coder', CODERS)
def test_tiles_round_trip(coder, monkeypatch):
  monkeypatch.setattr(pixels, '_BATCH', 50)  # batches end inside tiles
  rng = np.random.default_rng(0)
  tiles = rng.integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
  tiles[1] = 77
  location = rng.normal(size=tiles.shape).astype(np.float32)
  log_scale = np.full(tiles.shape, -2.0, np.float32)
  sizes = [(SIZE, SIZE), (2, 5), (1, 1)]
  data, bits = _coded(tiles, location, log_scale, sizes, coder)
  decoded = pixels.PixelCoder().decode(location, log_scale, sizes, CODERS[coder][1](data))
  np.testing.assert_array_equal(pixels.valid_values(decoded, sizes), pixels.valid_values(tiles, sizes))
  assert bits - 9 < 8 * len(data) <= bits + (9 if coder == 'range' else 50 * 3)


def test_flat_tiles_and_accurate_decoders_cost_few_bits():
  flat = np.full((1, SIZE, SIZE, 3), 200, np.uint8)
  rough = np.random.default_rng(0).integers(0, 256, flat.shape).astype(np.uint8)
  wrong = np.zeros(flat.shape, np.float32)
  scale, sizes = np.full(flat.shape, -1.0, np.float32), [(SIZE, SIZE)]
  right = np.log(0.1 + 0.8 * rough / 255) - np.log(0.9 - 0.8 * rough / 255)
  costs = {
    'flat': _coded(flat, wrong, scale, sizes, 'range')[1],
    'known': _coded(rough, right.astype(np.float32), scale, sizes, 'range')[1],
    'unknown': _coded(rough, wrong, scale, sizes, 'range')[1],
  }
  assert costs['unknown'] > 7 * rough.size
  assert costs['flat'] < 0.5 * flat.size and costs['known'] < 0.5 * rough.size
