"""The format of compressed files, with a writer and a reader that checks everything it reads.

    magic b'DJXC', version u16, header size u32, header (JSON by zlib), CRC-32 u32
    chunks: b'C', payload size u32, count u32, CRC-32 of the content u32, CRC-32 u32; payload
    end: b'E', number of chunks u32, bytes of content u64, SHA-256 of the content, CRC-32 u32

All integers are little-endian. A chunk's payload is the output of the entropy coder; its content is what the payload
decodes to. For a text file, `count` is a number of tokens and the content is their bytes. For pictures, `count` is a
number of tiles and the content is their codes and pixels.

The last CRC-32 of a chunk covers the header's CRC-32, the chunk's number, its fields and its payload. A chunk that was
moved to another place or another file therefore fails the check. The end record's CRC-32 is computed in the same way.

If a payload is intact but its content has the wrong CRC-32, the decoder computed other probabilities than the encoder.
"""

import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import dalle_jax
from dalle_jax.files import shown

MAGIC, VERSION = b'DJXC', 1
KINDS = ('text', 'pictures')
_PREFIX, _CHUNK = struct.Struct('<4sHI'), struct.Struct('<cIII')
_END, _CRC, _PLACE = struct.Struct('<cIQ32s'), struct.Struct('<I'), struct.Struct('<II')
MAX_HEADER = 1 << 24  # bytes, unpacked
MAX_PAYLOAD = 1 << 30
_READ_SIZE = 1 << 20  # bytes read at a time, so that a cut file takes no more memory than it has bytes


class Unreadable(ValueError):
  """The file cannot be used. The message is a clause whose subject is the file, such as 'its header is damaged'."""


class Damaged(Unreadable):
  """The file is truncated or changed, or was coded with other probabilities. All chunks before the damage are valid."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """What a decoder must know before it reads the first chunk."""

  kind: str  # one of KINDS
  coder: str  # 'range' or 'huffman'
  model: str  # fingerprint of the parameters, the configuration and the tokenizer
  batch_size: int  # sequences coded side by side; the rounding of the model's outputs depends on it
  length: int  # tokens per sequence
  settings: dict[str, Any]  # specific to the kind
  platform: dict[str, str]  # device and versions that the encoder ran on; informative only

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      expected: Any = dict if field.name in ('settings', 'platform') else field.type
      if type(getattr(self, field.name)) is not expected:
        raise ValueError(
          f'{field.name} is {shown(repr(getattr(self, field.name)))}; its type must be {expected.__name__}'
        )
    if self.kind not in KINDS:
      raise ValueError(f'kind is {shown(repr(self.kind))}; this version knows {", ".join(KINDS)}')
    if not (1 <= self.batch_size <= 1 << 16 and 1 <= self.length <= 1 << 24):
      raise ValueError(
        f'batch_size is {self.batch_size} and length is {self.length}; they must lie in 1 to {1 << 16:,} and in 1 to '
        f'{1 << 24:,}'
      )


@dataclasses.dataclass(frozen=True)
class Chunk:
  count: int  # tokens or tiles
  content_crc: int  # CRC-32 of the decoded content
  payload: bytes


@dataclasses.dataclass(frozen=True)
class End:
  num_chunks: int
  num_bytes: int  # of the content of all chunks
  sha256: bytes  # of the content of all chunks


class ContainerWriter:
  """Writes a compressed file from front to back.

  Attributes:
    num_bytes: bytes written so far.
    payload_bytes: bytes of all payloads written so far.

  Raises:
    ValueError: the header is larger than the reader's limit.
  """

  def __init__(self, file: BinaryIO, header: Header):
    self._file, self._chunks, self._bytes, self._digest = file, 0, 0, hashlib.sha256()
    text = json.dumps(dataclasses.asdict(header), separators=(',', ':')).encode()
    if len(text) > MAX_HEADER:
      raise ValueError(
        f'The header, which lists the pictures, has {len(text):,} bytes; at most {MAX_HEADER:,} can be read back. '
        'Compress fewer pictures in one file.'
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
    """Write a chunk.

    Args:
      count: tokens or tiles in the chunk.
      content: what the payload decodes to; only its checksum and length are stored.
      payload: the output of the entropy coder.
    """
    assert len(payload) <= MAX_PAYLOAD
    self._write(_CHUNK.pack(b'C', len(payload), count, zlib.crc32(content)), payload)
    self._chunks += 1
    self._bytes += len(content)
    self.payload_bytes += len(payload)
    self._digest.update(content)

  def end(self) -> End:
    """Write the end record; call this once, after the last chunk."""
    end = End(self._chunks, self._bytes, self._digest.digest())
    self._write(_END.pack(b'E', *dataclasses.astuple(end)))
    return end


class ContainerReader:
  """Reads a compressed file from front to back.

  Attributes:
    header: the file's header.
    end: the end record; None until `chunks` has read it.

  Raises:
    Unreadable: the file has another format or version, or its header has invalid values.
    Damaged: the header is truncated or changed.
  """

  def __init__(self, file: BinaryIO):
    self._file, self._chunks, self._bytes, self._digest = file, 0, 0, hashlib.sha256()
    self.end: End | None = None
    start = file.read(_PREFIX.size)
    if start[: len(MAGIC)] != MAGIC:
      raise Unreadable('it was not written by `compress encode` (its first four bytes are not DJXC)')
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
      raise Unreadable(f'its header cannot be used: {shown(error, 300)}') from None

  def _exactly(self, size: int, section: str) -> bytes:
    """Read `size` bytes of a section of the file. Raises Damaged if there are fewer."""
    parts, missing = [], size
    while missing:
      part = self._file.read(min(missing, _READ_SIZE))
      if not part:
        raise Damaged(f'it is cut inside {section}')
      parts.append(part)
      missing -= len(part)
    return b''.join(parts)

  def chunks(self) -> Iterator[Chunk]:
    """Yield the chunks whose checksums are correct, then set `end`.

    Pass each chunk to `accept` or `skip` before you ask for the next one.

    Raises:
      Damaged: the next chunk or the end record is truncated or changed.
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
        raise Damaged(f'{name} is damaged, or belongs to another place or another file')
      yield Chunk(count, content_crc, payload)

  def accept(self, chunk: Chunk, content: bytes) -> None:
    """Check the decoded content of a chunk against its checksum.

    Raises:
      Damaged: the content differs, although the chunk's bytes are intact.
    """
    if zlib.crc32(content) != chunk.content_crc:
      raise Damaged(
        f'chunk {self._chunks} is intact but decodes to the wrong content: the model gives other probabilities here '
        f'than where the file was coded ({self.coded_on}). Decode it there'
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
    """The platform that the file was coded on, in printable ASCII."""
    described = ', '.join(f'{shown(name, 50)} {shown(value)}' for name, value in [*self.header.platform.items()][:20])
    return shown(ascii(described)[1:-1], 600)

  def skip(self, chunk: Chunk) -> None:
    """Go on to the next chunk without the content of this one."""
    del chunk
    self._chunks += 1

  @property
  def num_chunks(self) -> int:
    """Chunks accepted or skipped so far."""
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
      raise Damaged('it has extra bytes after its end')

  def check_whole(self) -> None:
    """Check length and SHA-256 of the whole content. Call this after `accept` was called for every chunk.

    Raises:
      Damaged: the content differs from what was encoded.
    """
    assert self.end is not None
    if (self.end.num_bytes, self.end.sha256) != (self._bytes, self._digest.digest()):
      raise Damaged('its content has another length or SHA-256 than its end record says')


def _checksum(header_crc: int, number: int, fields: bytes, payload: bytes = b'') -> bytes:
  return _CRC.pack(zlib.crc32(payload, zlib.crc32(fields, zlib.crc32(_PLACE.pack(header_crc, number)))))


def _inflate(data: bytes) -> bytes:
  """Decompress the header. Raises ValueError if the result has more than MAX_HEADER bytes."""
  inflater = zlib.decompressobj()
  header = inflater.decompress(data, MAX_HEADER)
  if inflater.unconsumed_tail:
    raise ValueError(f'it unpacks to more than {MAX_HEADER:,} bytes')
  return header
