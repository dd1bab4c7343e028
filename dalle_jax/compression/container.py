"""The file format of compressed files, and its reader that trusts nothing.

    magic b'DJXC', version u16, header size u32, header (JSON by zlib), CRC-32 u32
    chunks: b'C', payload size u32, count u32, CRC-32 of the content u32, CRC-32 u32; payload
    end: b'E', number of chunks u32, bytes of content u64, SHA-256 of the content, CRC-32 u32

The CRC-32 of a chunk or of the end is that of the header's CRC, the chunk's number, its fields and its payload: a chunk
is at home in one place of one file. Integers are little-endian. What `count` counts and what the content is are the
kind's own: tokens and the bytes that they stand for, or tiles and their codes and pixels. A chunk with a whole payload
whose content has another CRC was read with other probabilities than it was written with.
"""

import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import dalle_jax

MAGIC, VERSION = b'DJXC', 1
KINDS = ('text', 'pictures')
_PREFIX, _CHUNK = struct.Struct('<4sHI'), struct.Struct('<cIII')
_END, _CRC, _PLACE = struct.Struct('<cIQ32s'), struct.Struct('<I'), struct.Struct('<II')
MAX_HEADER = 1 << 24  # bytes, unpacked
MAX_PAYLOAD = 1 << 30


class Unreadable(ValueError):
  """The file cannot be used; the message says what `it` is or has."""


class Damaged(Unreadable):
  """The file is cut or changed, or was coded with other probabilities; what was read before it is right."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """What must be known before the first chunk."""

  kind: str  # one of KINDS
  coder: str  # 'range' or 'huffman'
  model: str  # fingerprint of the parameters
  batch_size: int  # sequences side by side, which the model's roundings depend on
  length: int  # tokens of a sequence
  settings: dict[str, Any]  # of the kind
  platform: dict[str, str]  # where it was coded; a note

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      kind = dict if field.name in ('settings', 'platform') else field.type
      if type(getattr(self, field.name)) is not kind:
        raise ValueError(f'{field.name} is {getattr(self, field.name)!r}')
    if self.kind not in KINDS:
      raise ValueError(f'kind is {self.kind!r}; this version knows {", ".join(KINDS)}')
    if not (1 <= self.batch_size <= 1 << 16 and 1 <= self.length <= 1 << 24):
      raise ValueError(f'batch_size is {self.batch_size} and length {self.length}')


@dataclasses.dataclass(frozen=True)
class Chunk:
  count: int
  content_crc: int
  payload: bytes


@dataclasses.dataclass(frozen=True)
class End:
  num_chunks: int
  num_bytes: int
  sha256: bytes


class ContainerWriter:
  """Writes a file from front to end.

  Raises:
    ValueError: the header is larger than readers take.
  """

  def __init__(self, file: BinaryIO, header: Header):
    self._file, self._chunks, self._bytes, self._digest = file, 0, 0, hashlib.sha256()
    text = json.dumps(dataclasses.asdict(header), separators=(',', ':')).encode()
    if len(text) > MAX_HEADER:
      raise ValueError(
        f'The list of pictures would have {len(text):,} bytes, and at most {MAX_HEADER:,} are read again; code fewer '
        'pictures in one file.'
      )
    encoded = zlib.compress(text, 9)
    start = _PREFIX.pack(MAGIC, VERSION, len(encoded)) + encoded
    self._header_crc = zlib.crc32(start)
    self.payload_bytes = 0
    self.num_bytes = file.write(start) + file.write(_CRC.pack(self._header_crc))

  def _write(self, fields: bytes, payload: bytes = b'') -> None:
    crc = _checksum(self._header_crc, self._chunks, fields, payload)
    self.num_bytes += self._file.write(fields) + self._file.write(crc) + self._file.write(payload)

  def chunk(self, count: int, content: bytes, payload: bytes) -> None:
    assert len(payload) <= MAX_PAYLOAD
    self._write(_CHUNK.pack(b'C', len(payload), count, zlib.crc32(content)), payload)
    self._chunks += 1
    self._bytes += len(content)
    self.payload_bytes += len(payload)
    self._digest.update(content)

  def end(self) -> End:
    end = End(self._chunks, self._bytes, self._digest.digest())
    self._write(_END.pack(b'E', *dataclasses.astuple(end)))
    return end


class ContainerReader:
  """Reads a file from front to end.

  Raises:
    Unreadable: it is no such file, or of another version.
    Damaged: its header is.
  """

  def __init__(self, file: BinaryIO):
    self._file, self._chunks, self._bytes, self._digest = file, 0, 0, hashlib.sha256()
    self.end: End | None = None
    start = file.read(_PREFIX.size)
    if start[: len(MAGIC)] != MAGIC:
      raise Unreadable('it is no file that `compress encode` wrote (its first four bytes are not DJXC)')
    if len(start) < _PREFIX.size:
      raise Damaged('it is cut inside its header')
    _, version, size = _PREFIX.unpack(start)
    if version != VERSION:
      raise Unreadable(f'its format is version {version}; dalle_jax {dalle_jax.__version__} reads version {VERSION}')
    if size > MAX_HEADER:
      raise Damaged('its header is damaged')
    encoded, crc = self._exactly(size, 'its header'), self._exactly(_CRC.size, 'its header')
    self._header_crc = zlib.crc32(start + encoded)
    if _CRC.pack(self._header_crc) != crc:
      raise Damaged('its header is damaged')
    try:
      self.header = Header(**json.loads(_inflate(encoded)))
    except (ValueError, TypeError, RecursionError, zlib.error) as error:
      raise Unreadable(f'its header cannot be used: {error}') from None

  def _exactly(self, size: int, part: str) -> bytes:
    data = self._file.read(size)
    if len(data) < size:
      raise Damaged(f'it is cut inside {part}')
    return data

  def chunks(self) -> Iterator[Chunk]:
    """The chunks whose bytes are as they were written; after the last one `end` is set.

    Give the content of each to `accept` before the next is read.
    """
    while True:
      name = f'chunk {self._chunks}'
      kind = self._file.read(1)
      if kind == b'E':
        return self._read_end(kind)
      if not kind:
        raise Damaged(f'it is cut before {name}')
      if kind != b'C':
        raise Damaged(f'{name} is damaged')
      start = kind + self._exactly(_CHUNK.size - 1, name)
      crc = self._exactly(_CRC.size, name)
      _, size, count, content_crc = _CHUNK.unpack(start)
      if size > MAX_PAYLOAD:
        raise Damaged(f'{name} is damaged')
      payload = self._exactly(size, name)
      if _checksum(self._header_crc, self._chunks, start, payload) != crc:
        raise Damaged(f'{name} is damaged, or was not written there')
      yield Chunk(count, content_crc, payload)

  def accept(self, chunk: Chunk, content: bytes) -> None:
    """Compares decoded content with what was coded.

    Raises:
      Damaged: it differs, though its bytes are whole.
    """
    if zlib.crc32(content) != chunk.content_crc:
      raise Damaged(
        f'chunk {self._chunks} is whole but decodes to something else: the model gives other probabilities here than '
        f'where the file was coded ({self.coded_on}). Decode it there'
      )
    self._chunks += 1
    self._bytes += len(content)
    self._digest.update(content)

  @property
  def position(self) -> int:
    """Bytes of the file read so far."""
    return self._file.tell()

  @property
  def coded_on(self) -> str:
    """Where, in printable characters."""
    return ascii(', '.join(f'{name} {value}' for name, value in self.header.platform.items()))[1:-1]

  def skip(self, chunk: Chunk) -> None:
    """Passes over a chunk without decoding it."""
    del chunk
    self._chunks += 1

  @property
  def num_chunks(self) -> int:
    """Chunks read so far."""
    return self._chunks

  def _read_end(self, kind: bytes) -> None:
    start, crc = kind + self._exactly(_END.size - 1, 'its end'), self._exactly(_CRC.size, 'its end')
    end = End(*_END.unpack(start)[1:])
    if _checksum(self._header_crc, end.num_chunks, start) != crc:
      raise Damaged('its end is damaged')
    if end.num_chunks != self._chunks:
      raise Damaged(f'it has {self._chunks} of {end.num_chunks} chunks')
    self.end = end
    if self._file.read(1):
      raise Damaged('there is something after its end')

  def check_whole(self) -> None:
    """After all chunks were accepted: whether they are the whole file. Raises Damaged."""
    assert self.end is not None
    if (self.end.num_bytes, self.end.sha256) != (self._bytes, self._digest.digest()):
      raise Damaged('its chunks are not the ones that were written')


def _checksum(header_crc: int, number: int, fields: bytes, payload: bytes = b'') -> bytes:
  return _CRC.pack(zlib.crc32(payload, zlib.crc32(fields, zlib.crc32(_PLACE.pack(header_crc, number)))))


def _inflate(data: bytes) -> bytes:
  """What zlib made of at most MAX_HEADER bytes. Raises ValueError for more."""
  inflater = zlib.decompressobj()
  found = inflater.decompress(data, MAX_HEADER)
  if inflater.unconsumed_tail:
    raise ValueError(f'it says more than {MAX_HEADER:,} bytes')
  return found
