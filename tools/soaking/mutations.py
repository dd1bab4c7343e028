"""Random damage to bytes, JSON values and text."""

import json
import struct
import zlib
from typing import Any

import numpy as np

_EXTREME_WORDS = (
  b'\x00' * 4, b'\xff' * 4, b'\x7f\xff\xff\xff', b'\xff\xff\xff\x7f', b'\x80\x00\x00\x00', b'\x00\x01',
)  # fmt: skip
_EXTREME_VALUES: tuple[Any, ...] = (
  None, True, False, 0, -1, 1, 7, 2**31, 2**60, -(2**63), 10**400, 0.5, -0.0, 1e308, float('nan'), float('inf'), '',
  'x', '\x00', '\u202e', '../../x', '\x1b[31m', 'a' * 5000, [], {}, [[]], [None] * 100, {'x': {}}, [1, 2],
  {'': None},
)  # fmt: skip
_PNG = b'\x89PNG\r\n\x1a\n'


def mutate_bytes(rng: np.random.Generator, data: bytes) -> bytes:
  """Damages bytes in one to three random ways: flipped bits, overwritten, removed, repeated or added parts."""
  for _ in range(int(rng.integers(1, 4))):
    data = _WAYS[int(rng.integers(len(_WAYS)))](rng, bytearray(data))
  return data


def _flip_bits(rng: np.random.Generator, data: bytearray) -> bytes:
  for _ in range(int(rng.integers(1, 9))):
    if data:
      data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
  return bytes(data)


def _overwrite(rng: np.random.Generator, data: bytearray) -> bytes:
  start, stop = _range(rng, len(data))
  data[start:stop] = rng.bytes(stop - start) if rng.random() < 0.5 else bytes([int(rng.integers(256))]) * (stop - start)
  return bytes(data)


def _extreme_word(rng: np.random.Generator, data: bytearray) -> bytes:
  word = _EXTREME_WORDS[int(rng.integers(len(_EXTREME_WORDS)))]
  # Sizes stand mostly in the first bytes.
  start = int(rng.integers(max(1, min(len(data), 64) if rng.random() < 0.5 else len(data))))
  data[start : start + len(word)] = word
  return bytes(data)


def _cut(rng: np.random.Generator, data: bytearray) -> bytes:
  return bytes(data[: int(rng.integers(len(data) + 1))])


def _remove(rng: np.random.Generator, data: bytearray) -> bytes:
  start, stop = _range(rng, len(data))
  del data[start:stop]
  return bytes(data)


def _repeat(rng: np.random.Generator, data: bytearray) -> bytes:
  start, stop = _range(rng, len(data))
  data[start:start] = data[start:stop]
  return bytes(data)


def _append(rng: np.random.Generator, data: bytearray) -> bytes:
  return bytes(data) + rng.bytes(int(rng.integers(1, 100)))


_WAYS = (_flip_bits, _flip_bits, _overwrite, _extreme_word, _extreme_word, _cut, _remove, _repeat, _append)


def _range(rng: np.random.Generator, length: int) -> tuple[int, int]:
  start = int(rng.integers(length + 1))
  return start, min(length, start + int(2 ** rng.uniform(0, 10)))


def with_png_checksums(data: bytes) -> bytes:
  """Makes the CRC-32 of all chunks of a PNG file right, so that damage reaches the decoder behind the checksums."""
  if not data.startswith(_PNG):
    return data
  fixed, position = bytearray(_PNG), len(_PNG)
  while position + 12 <= len(data):
    (length,) = struct.unpack_from('>I', data, position)
    body = data[position + 4 : position + 8 + length]
    if position + 12 + length > len(data):
      break
    fixed += data[position : position + 4] + body + struct.pack('>I', zlib.crc32(body))
    position += 12 + length
  return bytes(fixed) + data[position:]


def mutate_json(rng: np.random.Generator, text: str) -> str:
  """Damages JSON text: as bytes, or by replacing, removing, adding or nesting a value at a random place."""
  if rng.random() < 0.3:
    return mutate_bytes(rng, text.encode()).decode('utf-8', 'surrogateescape')
  if rng.random() < 0.1:
    return ('', '{}', '[]', 'null', '5', '"x"', '[' * 100_000, '{"a":' * 5000)[int(rng.integers(8))]
  lines = text.splitlines() if '\n{' in text else [text]
  number = int(rng.integers(len(lines)))
  lines[number] = json.dumps(_mutate_value(rng, json.loads(lines[number])))
  return '\n'.join(lines) + '\n'


def _mutate_value(rng: np.random.Generator, value: Any) -> Any:
  """A copy of a JSON value with one change at a random place, more often deep than at the top."""
  if isinstance(value, dict | list) and value and rng.random() < 0.85:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[int(rng.integers(len(keys)))]
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if rng.random() < 0.15:
      del copy[key]
    elif rng.random() < 0.1 and isinstance(copy, dict):
      copy[str(key) + 'x'] = _extreme(rng)
    else:
      copy[key] = _mutate_value(rng, value[key])
    return copy
  return _extreme(rng)


def _extreme(rng: np.random.Generator) -> Any:
  return _EXTREME_VALUES[int(rng.integers(len(_EXTREME_VALUES)))]


# Ranges of code points: ASCII, control, Latin, combining, zero width and directions, block elements, surrogates,
# Arabic, CJK, private use, emoji, tags.
_RANGES = (
  (0x20, 0x7F), (0x61, 0x7B), (0, 0x20), (0x7F, 0x250), (0x300, 0x370), (0x200B, 0x2070), (0x2580, 0x2590),
  (0xD800, 0xE000), (0x600, 0x700), (0x4E00, 0x4F00), (0xE000, 0xE010), (0x1F300, 0x1F600), (0xE0000, 0xE0080),
)  # fmt: skip


def random_text(rng: np.random.Generator, most: int) -> str:
  """Text of up to `most` characters of a few random ranges of Unicode, lone surrogates included."""
  ranges = [_RANGES[int(i)] for i in rng.integers(len(_RANGES), size=int(rng.integers(1, 4)))]
  length = int(2 ** rng.uniform(0, np.log2(most))) if rng.random() < 0.95 else 0
  picks = rng.integers(len(ranges), size=length)
  return ''.join(chr(int(rng.integers(*ranges[pick]))) for pick in picks)
