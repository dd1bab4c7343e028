"""Range coding in integer arithmetic (Martin 1979). Carries propagate into written bytes, as in Schindler's coder.

The interval [low, low + range) starts as [0, 2^64). Each symbol narrows it to the symbol's share, where a probability
is an integer out of 2^PRECISION. Whenever the range falls below 2^56, the encoder writes a byte.
"""

import numpy as np

PRECISION = 30  # bits of a probability
_SIZE, _TOP, _MASK = 64, 1 << 56, (1 << 64) - 1


class RangeEncoder:
  """Encodes symbols to bytes. `cumulative` is an increasing int32 array [V + 1] from 0 to 2^PRECISION."""

  def __init__(self) -> None:
    self._low, self._range = 0, 1 << _SIZE
    self._bytes = bytearray()

  def put(self, cumulative: np.ndarray, symbol: int) -> None:
    start, end = int(cumulative[symbol]), int(cumulative[symbol + 1])
    unit = self._range >> PRECISION
    self._low += unit * start
    self._range = unit * (end - start)
    self._carry()
    while self._range < _TOP:
      self._shift()

  def _carry(self) -> None:
    if self._low <= _MASK:
      return
    self._low &= _MASK
    position = len(self._bytes) - 1
    while self._bytes[position] == 0xFF:
      self._bytes[position] = 0
      position -= 1
    self._bytes[position] += 1

  def _shift(self) -> None:
    self._bytes.append(self._low >> 56)
    self._low = self._low << 8 & _MASK
    self._range <<= 8

  def finish(self) -> bytes:
    """Return all bytes, without zeros at the end: the decoder reads zeros after the last byte."""
    end = self._low + self._range
    for count in range(9):  # find the number in the interval with the fewest nonzero bytes
      unit = 1 << (_SIZE - 8 * count)
      number = -(-self._low // unit) * unit
      if number < end:
        break
    self._low = number
    self._carry()
    for _ in range(8):
      self._shift()
    return bytes(self._bytes).rstrip(b'\0')


class RangeDecoder:
  """Decodes the bytes of a `RangeEncoder`, given the same `cumulative` arrays in the same order."""

  def __init__(self, data: bytes):
    self._data, self._position = data, 8
    self._code = int.from_bytes(data[:8].ljust(8, b'\0'), 'big')  # relative to the encoder's low
    self._range = 1 << _SIZE

  def get(self, cumulative: np.ndarray) -> int:
    unit = self._range >> PRECISION
    # `unit` is rounded down, so no symbol owns the end of the interval. Only damaged data lead there.
    target = min(self._code // unit, (1 << PRECISION) - 1)
    symbol = int(cumulative.searchsorted(np.int32(target), 'right')) - 1
    start, end = int(cumulative[symbol]), int(cumulative[symbol + 1])
    self._code -= unit * start
    self._range = unit * (end - start)
    while self._range < _TOP:
      byte = self._data[self._position] if self._position < len(self._data) else 0
      self._position += 1
      self._code = self._code << 8 & _MASK | byte
      self._range <<= 8
    return symbol
