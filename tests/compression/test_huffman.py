import heapq
import math

import numpy as np
import pytest
from distributions import TOTAL, code, cumulative, ideal_bits, random_message
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.compression.huffman import HuffmanDecoder, HuffmanEncoder, code_lengths


def least_cost(frequencies):
  """The cost of an optimal code by Huffman's original algorithm, which merges two nodes at a time."""
  heap, cost = [int(f) for f in frequencies], 0
  heapq.heapify(heap)
  while len(heap) > 1:
    merged = heapq.heappop(heap) + heapq.heappop(heap)
    cost += merged
    heapq.heappush(heap, merged)
  return cost


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 4), st.integers(1, 2**30)), min_size=1, max_size=60))
def test_code_lengths_are_optimal_and_the_code_is_complete(frequencies):
  lengths = code_lengths(np.array(frequencies))
  assert int(np.sum(lengths * np.array(frequencies))) == least_cost(frequencies)
  assert sum(2.0 ** -int(length) for length in lengths) == 1.0


def test_fibonacci_frequencies_give_the_longest_codes():
  fibonacci = [1, 1]
  while len(fibonacci) < 30:
    fibonacci.append(sum(fibonacci[-2:]))
  assert sorted(code_lengths(np.array(fibonacci))) == sorted([29, 29, *range(1, 29)])


def test_the_example_of_the_article_takes_as_many_bits_as_its_entropy():
  # The words the, cat, sat, mat have the probabilities 1/2, 1/4, 1/8, 1/8. The code and the entropy are 1.75 bits.
  frequencies = np.array([8, 4, 2, 2])
  assert list(code_lengths(frequencies)) == [1, 2, 3, 3]
  assert np.sum(code_lengths(frequencies) * frequencies) / 16 == 1.75


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.sampled_from([0.02, 0.3, 5.0]))
def test_symbols_round_trip_and_the_expected_length_is_within_one_bit_of_the_entropy(seed, length, concentration):
  sums, symbols = random_message(np.random.default_rng(seed), length, [1, 2, 3, 40], concentration)
  data = code(HuffmanEncoder(), sums, symbols)
  decoder = HuffmanDecoder(data)
  assert [decoder.get(s) for s in sums] == symbols
  for s in sums:
    probs = np.diff(s) / TOTAL
    mean, entropy = np.sum(code_lengths(np.diff(s)) * probs), -np.sum(probs * np.log2(probs))
    assert entropy - 1e-9 <= mean < entropy + 1


def test_the_encoded_bytes_do_not_change_between_versions():
  # The canonical code is a 0, b 10, c 110, d 111.
  sums = [cumulative([TOTAL // 2, TOTAL // 4, TOTAL // 8, TOTAL // 8])] * 5
  assert code(HuffmanEncoder(), sums, [0, 1, 2, 3, 0]) == bytes([0b01011011, 0b10000000])


def test_the_cost_agrees_with_the_huffman_coder_of_constriction():
  huffman = pytest.importorskip('constriction').symbol
  rng = np.random.default_rng(0)
  sums, symbols = random_message(rng, 60, [50], 0.3)
  bits = 8 * len(code(HuffmanEncoder(), sums, symbols))
  other = huffman.QueueEncoder()
  for s, symbol in zip(sums, symbols, strict=True):
    other.encode_symbol(symbol, huffman.huffman.EncoderHuffmanTree(np.diff(s).astype(np.float64)))
  # Optimal codes are not unique: a symbol's length may differ, so the costs of a sample are only close.
  assert bits == pytest.approx(other.get_compressed()[1], rel=0.05)
  assert bits >= math.floor(ideal_bits(sums, symbols) * 0.95)
