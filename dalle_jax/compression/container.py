"""The file format of compressed files, and its reader that trusts nothing.

    magic b'DJXC', version u16, header size u32, header (JSON by zlib), CRC-32 u32
    chunks: b'C', payload size u32, count u32, CRC-32 of the content u32, CRC-32 u32 of this and the payload; payload
    end: b'E', number of chunks u32, bytes of content u64, SHA-256 of the content, CRC-32 u32 of all this

Integers are little-endian. What `count` counts and what the content is are the kind's own: tokens and the bytes that
they stand for, or tiles and their codes and pixels. A chunk of whole payload whose content has another CRC was
read with other probabilities than it was written with.
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
_PREFIX, _CHUNK, _END, _CRC = (
  struct.Struct('<4sHI'),
  struct.Struct('<cIII'),
  struct.Struct('<cIQ32s'),
  struct.Struct('<I'),
)
MAX_HEADER = 1 << 26
MAX_PAYLOAD = 1 << 30


class Damaged(ValueError):
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


class Writer:
  """Writes a file from front to end."""

  def __init__(self, file: BinaryIO, header: Header):
    self._file, self._chunks, self._bytes, self._digest = file, 0, 0, hashlib.sha256()
    encoded = zlib.compress(json.dumps(dataclasses.asdict(header), separators=(',', ':')).encode(), 9)
    self.num_bytes = self.payload_bytes = 0
    self._write(_PREFIX.pack(MAGIC, VERSION, len(encoded)) + encoded)

  def _write(self, data: bytes, rest: bytes = b'') -> None:
    """The data, a CRC of data and rest, and the rest."""
    crc = _CRC.pack(zlib.crc32(rest, zlib.crc32(data)))
    self.num_bytes += self._file.write(data) + self._file.write(crc) + self._file.write(rest)

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


class Reader:
  """Reads a file from front to end.

  Raises:
    ValueError: it is no such file, or of another version.
    Damaged: its header is.
  """

  def __init__(self, file: BinaryIO):
    self._file, self._chunks, self._bytes, self._digest = file, 0, 0, hashlib.sha256()
    self.end: End | None = None
    start = file.read(_PREFIX.size)
    if start[: len(MAGIC)] != MAGIC:
      raise ValueError('it is no file that `compress encode` wrote (its first four bytes are not DJXC)')
    if len(start) < _PREFIX.size:
      raise Damaged('it is cut inside its header')
    _, version, size = _PREFIX.unpack(start)
    if version != VERSION:
      raise ValueError(f'its format is version {version}; dalle_jax {dalle_jax.__version__} reads version {VERSION}')
    if size > MAX_HEADER:
      raise Damaged('its header is damaged')
    encoded, crc = self._exactly(size, 'its header'), self._exactly(_CRC.size, 'its header')
    if _CRC.pack(zlib.crc32(start + encoded)) != crc:
      raise Damaged('its header is damaged')
    try:
      self.header = Header(**json.loads(_inflate(encoded)))
    except (ValueError, TypeError, zlib.error) as error:
      raise ValueError(f'its header cannot be used: {error}') from None

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
      if _CRC.pack(zlib.crc32(payload, zlib.crc32(start))) != crc:
        raise Damaged(f'{name} is damaged')
      yield Chunk(count, content_crc, payload)

  def accept(self, chunk: Chunk, content: bytes) -> None:
    """Compares decoded content with what was coded.

    Raises:
      Damaged: it differs, though its bytes are whole.
    """
    if zlib.crc32(content) != chunk.content_crc:
      raise Damaged(
        f'chunk {self._chunks} is whole but decodes to something else: on this machine the model gives other '
        f'probabilities than where the file was coded ({self.coded_on}). Decode it there'
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
    return ', '.join(f'{name} {value}' for name, value in self.header.platform.items())

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
    if _CRC.pack(zlib.crc32(start)) != crc:
      raise Damaged('its end is damaged')
    self.end = End(*_END.unpack(start)[1:])
    if self.end.num_chunks != self._chunks:
      raise Damaged(f'it has {self._chunks} of {self.end.num_chunks} chunks')
    if self._file.read(1):
      raise Damaged('there is something after its end')

  def check_whole(self) -> None:
    """After all chunks were accepted: whether they are the whole file. Raises Damaged."""
    assert self.end is not None
    if (self.end.num_bytes, self.end.sha256) != (self._bytes, self._digest.digest()):
      raise Damaged('its chunks are not the ones that were written')


def _inflate(data: bytes) -> bytes:
  """What zlib made of at most MAX_HEADER bytes. Raises ValueError for more."""
  inflater = zlib.decompressobj()
  found = inflater.decompress(data, MAX_HEADER)
  if inflater.unconsumed_tail:
    raise ValueError(f'it says more than {MAX_HEADER:,} bytes')
  return found
