import numpy as np
import pytest

from dalle_jax.evaluation.diversity import num_distinct, pairwise_distance, pixel_distance, vendi


def test_pairwise_distance_matches_hand_computed_values():
  x = np.array([[[0, 0], [3, 4], [0, 8]], [[1, 1], [1, 1], [1, 1]]], np.float32)
  np.testing.assert_allclose(pairwise_distance(x), [(5 + 8 + 5) / 3, 0])


def test_pixel_distance_is_a_share_of_the_pixel_range():
  images = np.zeros((1, 2, 4, 4, 3), np.uint8)
  images[0, 1] = 255
  np.testing.assert_allclose(pixel_distance(images), 1)
  images[0, 1] = 51
  np.testing.assert_allclose(pixel_distance(images), 0.2)


def test_repeated_grids_are_counted_once():
  codes = np.array([[[[1, 2]], [[1, 2]], [[2, 1]]], [[[0, 0]], [[0, 0]], [[0, 0]]]])
  np.testing.assert_array_equal(num_distinct(codes), [2, 1])


def test_vendi_counts_orthogonal_directions():
  eye = np.eye(4, 6)
  x = np.stack([eye, np.tile(eye[:1], (4, 1)) * 5, eye[[0, 0, 1, 1]], np.zeros((4, 6))])
  np.testing.assert_allclose(vendi(x)[:3], [4, 1, 2], rtol=1e-9)
  assert np.isfinite(vendi(x)).all()


def test_vendi_lies_between_one_and_the_number_of_vectors():
  scores = vendi(np.random.default_rng(0).normal(size=(5, 7, 3)))
  assert scores.shape == (5,) and np.all((scores >= 1) & (scores <= 7))
  assert pytest.approx(1, abs=1e-6) != scores.mean()
