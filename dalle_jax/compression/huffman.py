"""Huffman coding with a fresh code for every symbol, made from the distribution of its step (Huffman 1952).

Codes are canonical: their lengths alone define them, so that encoder and decoder need to agree on nothing but integers.
"""

import numpy as np


def code_lengths(frequencies: np.ndarray) -> np.ndarray:
  """The lengths in bits, int64 [V], of an optimal prefix code for positive integer frequencies [V].

  Nodes are merged in rounds. A merged node weighs at least what the two lightest weigh together, so all nodes up to
  that weight can be paired, in order, before a merged one is looked at.
  """
  size = len(frequencies)
  nodes = np.argsort(frequencies, kind='stable')
  weights = frequencies[nodes].astype(np.int64)
  rounds, made = [], size
  while len(nodes) > 1:
    count = int(np.searchsorted(weights, weights[0] + weights[1], 'right')) // 2 * 2
    new = made + np.arange(count // 2)
    rounds.append((nodes[:count], new))
    made += len(new)
    nodes = np.concatenate([nodes[count:], new])
    weights = np.concatenate([weights[count:], weights[:count].reshape(-1, 2).sum(axis=1)])
    order = np.argsort(weights, kind='stable')
    nodes, weights = nodes[order], weights[order]
  depth = np.zeros(made, np.int64)
  for children, parents in reversed(rounds):
    depth[children] = np.repeat(depth[parents] + 1, 2)
  return depth[:size]


class _Code:
  """The canonical code of a cumulative distribution: symbols by (length, symbol) get consecutive numbers."""

  def __init__(self, cumulative: np.ndarray):
    self.lengths = code_lengths(np.diff(cumulative))
    self.order = np.argsort(self.lengths, kind='stable')
    self.counts = np.bincount(self.lengths)

  def of(self, symbol: int) -> tuple[int, int]:
    """The code of a symbol as a number, and its length."""
    length = int(self.lengths[symbol])
    first, _ = self.first(length)
    return first + int(np.count_nonzero(self.lengths[:symbol] == length)), length

  def first(self, length: int) -> tuple[int, int]:
    """The first code of a length, and how many symbols have shorter ones."""
    code = shorter = 0
    for count in self.counts[:length]:
      code, shorter = (code + int(count)) << 1, shorter + int(count)
    return code, shorter


class HuffmanEncoder:
  """Symbols to bytes; `cumulative` is an increasing integer array [V + 1], whose differences are the frequencies."""

  def __init__(self) -> None:
    self._bytes, self._pending, self._count = bytearray(), 0, 0

  def put(self, cumulative: np.ndarray, symbol: int) -> None:
    code, length = _Code(cumulative).of(symbol)
    self._pending = self._pending << length | code
    self._count += length
    while self._count >= 8:
      self._count -= 8
      self._bytes.append(self._pending >> self._count)
      self._pending &= (1 << self._count) - 1

  def finish(self) -> bytes:
    """All bytes, the last filled up with zeros."""
    last = bytes([self._pending << (8 - self._count)]) if self._count else b''
    return bytes(self._bytes) + last


class HuffmanDecoder:
  """The symbols that a `HuffmanEncoder` was given, if it gets the same `cumulative` arrays."""

  def __init__(self, data: bytes):
    self._data, self._position = data, 0  # in bits

  def get(self, cumulative: np.ndarray) -> int:
    code = _Code(cumulative)
    value = first = shorter = 0
    for count in map(int, code.counts):
      if value - first < count:
        return int(code.order[shorter + value - first])
      value, first, shorter = value << 1 | self._bit(), (first + count) << 1, shorter + count
    raise AssertionError('a prefix code of all symbols has an end for every sequence of bits')

  def _bit(self) -> int:
    index, self._position = self._position, self._position + 1
    byte = self._data[index // 8] if index // 8 < len(self._data) else 0
    return byte >> (7 - index % 8) & 1
