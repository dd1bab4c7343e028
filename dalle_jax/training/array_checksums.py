"""A checksum for each array of a tree, the same however devices and hosts share the array.

The checksum is the CRC-32C without its usual first and last inversion. It is then linear: the checksum of an array is
the exclusive or (XOR) of the checksums of its parts, each part taken with zeros in place of the rest. Every process
sums what its own devices hold, so no array has to be in one place (tests compare with the CRC-32C of whole arrays).
"""

import functools
import math
import operator
from collections.abc import Mapping
from typing import Any

import crc32c
import jax
import numpy as np

from dalle_jax import hosts, trees

_ONES = 0xFFFFFFFF


class HostArrays:
  """What this process holds of the arrays of a tree, in host memory. Each part of an array is on one process only.

  On CPUs the contents are views: an array that is donated meanwhile keeps its contents, because JAX copies it.
  """

  def __init__(self, tree: Any) -> None:
    arrays = trees.named_leaves(tree)
    shards = {name: _own_shards(array) for name, array in arrays.items()}
    for _, data in (shard for own in shards.values() for shard in own):
      data.copy_to_host_async()  # start all before waiting for the first
    self._shapes = {name: array.shape for name, array in arrays.items()}
    self._parts = {name: [(index, np.asarray(data)) for index, data in own] for name, own in shards.items()}

  def checksums(self) -> dict[str, int]:
    """The part of this process in the checksum of each array. May be called once: it releases the contents."""
    return {name: self._checksum(name) for name in self._shapes}

  def _checksum(self, name: str) -> int:
    shape = self._shapes[name]
    return functools.reduce(operator.xor, (part_of_checksum(shape, *part) for part in self._parts.pop(name)), 0)


def part_of_checksum(shape: tuple[int, ...], index: tuple[slice, ...], data: np.ndarray) -> int:
  """What a part of an array contributes to the checksum of the whole.

  Args:
    shape: The shape of the whole array.
    index: Where the part is: a slice for each axis, without steps.
    data: The part.
  """
  first, content = _spread(shape, index, data)
  zeros_after = math.prod(shape) - first - content.size
  return _append_zeros(_linear_crc(content), zeros_after * content.itemsize)


def changed(own: Mapping[str, int], expected: Mapping[str, int]) -> list[str]:
  """The arrays whose checksum differs. All hosts call this together, and all get the same answer.

  Args:
    own: The part of this process in the checksum of each array, from `HostArrays.checksums`; the same arrays, in the
      same order, on all hosts.
    expected: The checksum of each array.
  """
  totals = hosts.xor(np.array(list(own.values()), np.uint32))
  found = dict(zip(own, totals.tolist(), strict=True))
  return [name for name in {**expected, **found} if found.get(name) != expected.get(name)]


def combined(parts: list[Mapping[str, int]]) -> dict[str, int]:
  """The checksums of whole arrays, from the parts of all processes."""
  return {name: functools.reduce(lambda total, part: total ^ part[name], parts, 0) for name in parts[0]}


def _own_shards(array: jax.Array) -> list[tuple[Any, Any]]:
  """The index and contents of the shards of which this process has the first copy."""
  # `addressable_data` makes new objects, so that no host copy stays with `array`.
  return [
    (shard.index, array.addressable_data(number))
    for number, shard in enumerate(array.addressable_shards)
    if shard.replica_id == 0
  ]


def _spread(shape: tuple[int, ...], index: tuple[slice, ...], data: np.ndarray) -> tuple[int, np.ndarray]:
  """The shortest run of the flat array that holds a shard: its first element, and contents with zeros in the gaps.

  A shard that is whole but for its first axis is a run by itself, and is not copied.
  """
  starts = [part.indices(size)[0] for part, size in zip(index, shape, strict=True)]
  strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
  first = sum(start * stride for start, stride in zip(starts, strides, strict=True))
  length = 1 + sum((size - 1) * stride for size, stride in zip(data.shape, strides, strict=True))
  if data.size == 0 or length == data.size:
    return first, np.ascontiguousarray(data).reshape(-1)
  run = np.zeros(length, data.dtype)
  byte_strides = [stride * data.itemsize for stride in strides]
  np.lib.stride_tricks.as_strided(run, data.shape, byte_strides)[...] = data
  return first, run


def _linear_crc(content: np.ndarray) -> int:
  """CRC-32C with an initial value of 0 and no inversion at the end."""
  return crc32c.crc32c(content.view(np.uint8).data, _ONES) ^ _ONES


def _append_zeros(crc: int, count: int) -> int:
  """The linear CRC-32C after `count` more bytes of zeros."""
  power = 0
  while count and crc:
    if count & 1:
      crc = _times(_zeros_operator(power), crc)
    count, power = count >> 1, power + 1
  return crc


@functools.cache
def _zeros_operator(power: int) -> tuple[int, ...]:
  """What 2^power bytes of zeros do to each bit of a linear CRC-32C: the columns of a matrix of bits."""
  if power == 0:
    return tuple(crc32c.crc32c(b'\0', (1 << bit) ^ _ONES) ^ _ONES for bit in range(32))
  half = _zeros_operator(power - 1)
  return tuple(_times(half, column) for column in half)


def _times(matrix: tuple[int, ...], crc: int) -> int:
  """A matrix of `_zeros_operator` times the bits of `crc`."""
  total, bit = 0, 0
  while crc:
    if crc & 1:
      total ^= matrix[bit]
    crc, bit = crc >> 1, bit + 1
  return total
