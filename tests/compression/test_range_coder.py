import numpy as np
import pytest
from distributions import TOTAL, code, cumulative, ideal_bits, random_message
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.compression.range_coder import RangeDecoder, RangeEncoder


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60), st.sampled_from([0.02, 0.3, 5.0]))
def test_symbols_round_trip_and_cost_their_information(seed, length, concentration):
  sums, symbols = random_message(np.random.default_rng(seed), length, [1, 2, 3, 40], concentration)
  data = code(RangeEncoder(), sums, symbols)
  decoder = RangeDecoder(data)
  assert [decoder.get(s) for s in sums] == symbols
  assert len(data) * 8 <= ideal_bits(sums, symbols) + 9


def test_carries_propagate_through_many_bytes():
  # The first symbol is nearly certain, so coding the last one moves `low` close to the end of the interval.
  edge = cumulative([TOTAL - 1, 1])
  rng = np.random.default_rng(0)
  for _ in range(300):
    sums = [edge if rng.random() < 0.7 else cumulative([1, TOTAL - 2, 1]) for _ in range(40)]
    symbols = [int(rng.integers(len(s) - 1)) for s in sums]
    decoder = RangeDecoder(code(RangeEncoder(), sums, symbols))
    assert [decoder.get(s) for s in sums] == symbols


def test_long_messages_exceed_their_information_by_less_than_one_in_100_000():
  rng = np.random.default_rng(1)
  sums, symbols = random_message(rng, 20_000, [50], 0.5)
  bits = 8 * len(code(RangeEncoder(), sums, symbols))
  assert 0 <= bits - ideal_bits(sums, symbols) < 1e-5 * bits + 9


def test_certain_symbols_cost_nothing():
  sums = [cumulative([TOTAL])] * 1000
  assert code(RangeEncoder(), sums, [0] * 1000) == b''
  assert RangeDecoder(b'').get(sums[0]) == 0


def test_the_encoded_bytes_do_not_change_between_versions():
  rng = np.random.default_rng(2)
  sums, symbols = random_message(rng, 12, [7], 1.0)
  fixed = [cumulative([TOTAL // 8] * 8)] * 6
  assert code(RangeEncoder(), fixed, [1, 2, 3, 4, 5, 6]).hex() == '29cb80'  # three bits each: 001 010 011 100 101 110
  assert code(RangeEncoder(), sums, symbols).hex() == '01db460c5e'


def test_the_size_agrees_with_the_range_coder_of_constriction():
  constriction = pytest.importorskip('constriction')
  rng = np.random.default_rng(3)
  sums, symbols = random_message(rng, 3_000, [64], 0.7)
  other = constriction.stream.queue.RangeEncoder()
  family = constriction.stream.model.Categorical(perfect=False)
  other.encode(np.array(symbols, np.int32), family, np.array([np.diff(s) / TOTAL for s in sums]))
  assert 8 * len(code(RangeEncoder(), sums, symbols)) == pytest.approx(other.num_bits(), abs=64)
