"""Huffman coding with a new code for every symbol, built from that symbol's distribution (Huffman 1952).

The codes are canonical, that is, defined by the code lengths alone. Encoder and decoder therefore only need the same
integer frequencies.
"""

import numpy as np


def code_lengths(frequencies: np.ndarray) -> np.ndarray:
  """The code lengths in bits, int64 [V], of an optimal prefix code for positive integer frequencies [V].

  The loop merges nodes in rounds. Every merged node weighs at least as much as the two lightest nodes together. One
  round can therefore pair all nodes up to that weight, in order of weight.
  """
  size = len(frequencies)
  nodes = np.argsort(frequencies, kind='stable')
  weights = frequencies[nodes].astype(np.int64)
  rounds, num_nodes = [], size
  while len(nodes) > 1:
    count = int(np.searchsorted(weights, weights[0] + weights[1], 'right')) // 2 * 2
    parents = num_nodes + np.arange(count // 2)
    rounds.append((nodes[:count], parents))
    num_nodes += len(parents)
    nodes = np.concatenate([nodes[count:], parents])
    weights = np.concatenate([weights[count:], weights[:count].reshape(-1, 2).sum(axis=1)])
    order = np.argsort(weights, kind='stable')
    nodes, weights = nodes[order], weights[order]
  depth = np.zeros(num_nodes, np.int64)
  for children, parents in reversed(rounds):
    depth[children] = np.repeat(depth[parents] + 1, 2)
  return depth[:size]


class _Code:
  """The canonical code of a distribution [V + 1]: symbols sorted by (length, symbol) have consecutive codes.

  Attributes:
    lengths: code length of each symbol, in bits.
    order: symbols sorted by (length, symbol).
    counts: number of symbols with each code length.
  """

  def __init__(self, cumulative: np.ndarray):
    self.lengths = code_lengths(np.diff(cumulative))
    self.order = np.argsort(self.lengths, kind='stable')
    self.counts = np.bincount(self.lengths)

  def of(self, symbol: int) -> tuple[int, int]:
    """The code of a symbol as an integer, and its length in bits."""
    length = int(self.lengths[symbol])
    first, _ = self.first(length)
    return first + int(np.count_nonzero(self.lengths[:symbol] == length)), length

  def first(self, length: int) -> tuple[int, int]:
    """The first code of a length, and the number of symbols with shorter codes."""
    code = shorter = 0
    for count in self.counts[:length]:
      code, shorter = (code + int(count)) << 1, shorter + int(count)
    return code, shorter


class HuffmanEncoder:
  """Encodes symbols to bytes.

  `cumulative` is an increasing integer array [V + 1] whose differences are the symbols' frequencies.
  """

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
    """Return all bytes. Zero bits fill up the last one."""
    last = bytes([self._pending << (8 - self._count)]) if self._count else b''
    return bytes(self._bytes) + last


class HuffmanDecoder:
  """Decodes the bytes of a `HuffmanEncoder`, given the same `cumulative` arrays in the same order."""

  def __init__(self, data: bytes):
    self._data, self._position = data, 0  # in bits

  def get(self, cumulative: np.ndarray) -> int:
    code = _Code(cumulative)
    value = first = shorter = 0
    for count in map(int, code.counts):
      if value - first < count:
        return int(code.order[shorter + value - first])
      value, first, shorter = value << 1 | self._bit(), (first + count) << 1, shorter + count
    raise AssertionError('a complete prefix code decodes every sequence of bits')

  def _bit(self) -> int:
    index, self._position = self._position, self._position + 1
    byte = self._data[index // 8] if index // 8 < len(self._data) else 0
    return byte >> (7 - index % 8) & 1
