"""Checksums of arrays, compared with CRC-32C of whole arrays, however the arrays are divided."""

import functools
import itertools
import operator

import crc32c
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_jax.training import array_checksums
from dalle_jax.training.array_checksums import HostArrays

CUTS = [{}, {0: 4}, {1: 2}, {2: 3}, {0: 2, 1: 2}, {0: 4, 2: 2}, {1: 4, 2: 6}, {0: 8, 1: 4, 2: 6}]


def reference(array):
  """The CRC-32C of a whole array without its two inversions: it differs by the CRC-32C of as many zeros."""
  content = np.asarray(array).tobytes()
  return crc32c.crc32c(content) ^ crc32c.crc32c(bytes(len(content)))


@pytest.mark.parametrize('cuts', CUTS, ids=str)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', 'uint32', 'bool'])
def test_parts_of_any_division_give_the_checksum_of_the_whole(cuts, dtype):
  values = np.asarray(jax.random.normal(jax.random.key(1), (8, 4, 6)) * 9).astype(jnp.dtype(dtype))
  edges = [np.linspace(0, size, cuts.get(axis, 1) + 1, dtype=int) for axis, size in enumerate(values.shape)]
  slices = [[slice(int(a), int(b)) for a, b in itertools.pairwise(edge)] for edge in edges]
  parts = [array_checksums.part_of_checksum(values.shape, i, values[i]) for i in itertools.product(*slices)]
  assert functools.reduce(operator.xor, parts) == reference(values)
  assert HostArrays({'x': jnp.asarray(values)}).checksums() == {"['x']": reference(values)}


@pytest.mark.parametrize('shape', [(), (0,), (3, 0, 2), (1,), (1, 1), (5,), (257, 3)], ids=str)
def test_any_shape_has_a_checksum(shape):
  values = np.arange(1, 1 + np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
  assert HostArrays([jnp.asarray(values)]).checksums() == {'[0]': reference(values)}


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=40), st.integers(1, 9))
def test_zeros_are_appended_without_being_read(count, content, split):
  crc = array_checksums._linear_crc(np.frombuffer(content, np.uint8))
  whole = array_checksums._linear_crc(np.frombuffer(content + bytes(count), np.uint8))
  assert array_checksums._append_zeros(crc, count) == whole
  first = count // split
  assert array_checksums._append_zeros(array_checksums._append_zeros(crc, first), count - first) == whole


def test_every_single_flipped_bit_changes_the_checksum():
  values = np.random.default_rng(0).integers(0, 256, 64, np.uint8)
  found = set()
  for bit in range(512):
    flipped = values.copy()
    flipped[bit // 8] ^= 1 << bit % 8
    found |= set(HostArrays([jnp.asarray(flipped)]).checksums().values())
  assert len(found) == 512 and reference(values) not in found


def test_the_parts_of_hosts_combine_to_the_whole():
  values = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
  held = [(slice(None), slice(0, 4)), (slice(None), slice(4, 5)), (slice(None), slice(5, 10))]  # by three hosts
  parts = [{'x': array_checksums.part_of_checksum(values.shape, index, values[index])} for index in held]
  assert array_checksums.combined(parts) == {'x': reference(values)}


def test_changed_arrays_are_named_and_so_are_missing_ones():
  assert array_checksums.changed({'a': 1, 'b': 2}, {'a': 1, 'b': 2}) == []
  assert array_checksums.changed({'a': 1, 'b': 2}, {'a': 1, 'b': 3}) == ['b']
  assert array_checksums.changed({'a': 1, 'b': 2}, {'b': 2, 'c': 4}) == ['c', 'a']


def test_an_array_that_is_donated_meanwhile_keeps_its_contents():
  array = jnp.arange(10_000.0)
  expected = reference(array)
  arrays = HostArrays([array])
  jax.block_until_ready(jax.jit(lambda x: x + 1, donate_argnums=0)(array))
  assert arrays.checksums() == {'[0]': expected}
