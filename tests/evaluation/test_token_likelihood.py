import math

import numpy as np
import pytest

from dalle_jax.evaluation import token_likelihood

# Two streams: a caption of two tokens and a pad, and an empty caption; each is followed by two image tokens.
COUNTED = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 1, 1]], bool)
NATS = np.log(2) * np.array([[3.0, 1.0, 2.0, 5.0, 3.0], [2.0, 9.0, 9.0, 0.0, 2.0]])


def test_the_summary_separates_images_from_captions_up_to_their_first_pad():
  figures = token_likelihood.summarize(NATS, COUNTED, text_length=3)
  expected = {
    'bits_per_image_token': 2.5,  # the images cost 8 and 2 bits
    'bits_per_image_token_stderr': 1.5,
    'nats_per_image': 5 * math.log(2),
    'nats_per_image_stderr': 3 * math.log(2),
    'image_perplexity': 2**2.5,
    'num_images': 2,
    'bits_per_text_token': 2.0,  # 6 bits for three tokens and 2 bits for one
    'bits_per_text_token_stderr': 0.0,
    'nats_per_caption': 4 * math.log(2),  # the captions cost 6 and 2 bits
    'nats_per_caption_stderr': 2 * math.log(2),
  }
  assert figures == pytest.approx(expected)


def test_streams_without_text_have_no_text_metrics():
  figures = token_likelihood.summarize(NATS[:, 3:], COUNTED[:, 3:], text_length=0)
  assert figures['bits_per_image_token'] == pytest.approx(2.5) and not [name for name in figures if 'text' in name]


def test_a_token_of_probability_zero_makes_the_metrics_infinite():
  figures = token_likelihood.summarize(np.array([[1.0, np.inf], [1.0, 1.0]]), np.ones((2, 2), bool), 0)
  assert figures['nats_per_image'] == figures['nats_per_image_stderr'] == figures['image_perplexity'] == math.inf


def test_bits_are_averaged_by_the_number_of_tokens_before():
  nats = np.log(2) * np.array([np.arange(10.0), np.arange(10.0) + 2])
  lengths, bits = token_likelihood.by_position(nats)
  assert lengths.tolist() == [0, 1, 2, 3, 4, 6, 8, 9]
  np.testing.assert_allclose(bits, 1 + np.array([0, 1, 2, 3, 4.5, 6.5, 8, 9]))
