import io
import struct
import zlib

import pytest
from counted_reads import CountedReads
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.compression import container
from dalle_jax.compression.coders import check_capacity
from dalle_jax.compression.container import ContainerReader, ContainerWriter, Damaged, Header

HEADER = Header(
  kind='text', coder='range', model='0123', batch_size=4, length=8, settings={}, platform={'platform': 'cpu'}
)
GOLDEN = (
  '444a584301006100000078da4dc73b0e80201005c0bbbc9ac25f61b88c415c818868604d8c86bbbba5ddcc8b2da4051a4c37'
  '43c11e0b656936c9917c974779d376bd74366cfd54c243d08342a4e4d8438f0a8598437205faad0a6734bc1e7997fd0c7b5e'
  'a8f503609c25da9d261d58430200000003000000c2412435e7fee7a001024301000000020000008b29907d91361d18034300'
  '0000000000000000000000aa4d307d4503000000050000000000000036bbe50ed96841d10443bcb670d6554f0a34b761be67'
  'ec9c4a8ad2c0c44ca42c9d822497'
)
CHUNKS = [(3, b'abc', b'\x01\x02'), (2, b'de', b'\x03'), (0, b'', b'')]


def written(chunks=CHUNKS, header=HEADER):
  file = io.BytesIO()
  writer = ContainerWriter(file, header)
  for chunk in chunks:
    writer.chunk(*chunk)
  writer.end()
  assert writer.num_bytes == len(file.getvalue()) and writer.payload_bytes == sum(len(p) for _, _, p in chunks)
  return file.getvalue()


def read(data, contents=(b'abc', b'de', b'')):
  """Read and check a whole file; return its payloads."""
  reader, payloads = ContainerReader(io.BytesIO(data)), []
  contents = iter(contents)
  for chunk in reader.chunks():
    reader.accept(chunk, next(contents))
    payloads.append(chunk.payload)
  reader.check_whole()
  return payloads


def test_chunks_and_header_are_read_back():
  reader = ContainerReader(io.BytesIO(written()))
  assert reader.header == HEADER and reader.coded_on == 'platform cpu'
  assert read(written()) == [payload for _, _, payload in CHUNKS]
  assert read(written([])) == []


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_changed_byte_is_detected(data):
  changed = bytearray(written())
  position = data.draw(st.integers(0, len(changed) - 1))
  changed[position] ^= data.draw(st.integers(1, 255))
  with pytest.raises(ValueError):
    read(bytes(changed))


def test_truncated_and_extended_files_are_refused():
  data = written()
  for size in range(len(data)):
    with pytest.raises(ValueError, match=r'cut|DJXC'):
      read(data[:size])
  with pytest.raises(Damaged, match='after its end'):
    read(data + b'x')


def test_chunks_before_the_damage_are_read():
  data = bytearray(written())
  data[-60] ^= 1  # in the last chunk
  reader = ContainerReader(io.BytesIO(bytes(data)))
  payloads = []
  with pytest.raises(Damaged, match='chunk 2'):
    for chunk in reader.chunks():
      reader.accept(chunk, CHUNKS[len(payloads)][1])
      payloads.append(chunk.payload)
  assert payloads == [b'\x01\x02', b'\x03'] and reader.num_chunks == 2


def test_a_missing_chunk_is_detected():
  one, two = written(CHUNKS[:1]), written(CHUNKS[:2])
  end = len(one) - 49
  shorter = one[:end] + two[-49:]
  with pytest.raises(Damaged, match='1 of 2 chunks'):
    read(shorter)


def test_wrong_content_of_an_intact_chunk_is_reported_as_other_probabilities():
  with pytest.raises(Damaged, match=r'other probabilities.*platform cpu'):
    read(written(), contents=(b'abX', b'de', b''))


def test_other_files_and_versions_are_refused():
  with pytest.raises(ValueError, match='first four bytes'):
    ContainerReader(io.BytesIO(b'\x1f\x8b\x08\x00' * 20))
  with pytest.raises(ValueError, match='first four bytes'):
    ContainerReader(io.BytesIO(b''))
  newer = written()[:4] + b'\x02\x00' + written()[6:]
  with pytest.raises(ValueError, match='version 2'):
    ContainerReader(io.BytesIO(newer))


@pytest.mark.parametrize('change', [{'batch_size': 0}, {'length': 1 << 30}, {'kind': 'sound'}, {'batch_size': 'many'}])
def test_headers_with_invalid_values_are_refused(change):
  values = {**{name: getattr(HEADER, name) for name in HEADER.__dataclass_fields__}, **change}
  with pytest.raises(ValueError, match=str(next(iter(change)))):
    Header(**values)


def test_a_header_that_unpacks_to_more_than_the_limit_is_refused(monkeypatch):
  data = written(header=Header(**{**HEADER.__dict__, 'settings': {'names': 'x' * 5_000}}))
  monkeypatch.setattr(container, 'MAX_HEADER', 4_000)
  with pytest.raises(ValueError, match='4,000 bytes'):
    ContainerReader(io.BytesIO(data))


def test_the_hash_of_the_whole_content_is_checked_at_the_end():
  reader = ContainerReader(io.BytesIO(written()))
  for chunk in reader.chunks():
    reader.skip(chunk)
  with pytest.raises(Damaged, match='another length or SHA-256'):
    reader.check_whole()


def test_files_of_version_1_stay_readable():
  # GOLDEN is a file that a release with version 1 wrote.
  assert read(bytes.fromhex(GOLDEN)) == [payload for _, _, payload in CHUNKS]
  assert ContainerReader(io.BytesIO(bytes.fromhex(GOLDEN))).header == HEADER


def test_oversized_payloads_and_headers_are_refused(monkeypatch):
  data = written()
  monkeypatch.setattr(container, 'MAX_PAYLOAD', 1)
  with pytest.raises(Damaged, match='chunk 0'):
    read(data)
  monkeypatch.setattr(container, 'MAX_HEADER', 50)
  with pytest.raises(ValueError, match='fewer pictures in one file'):
    written()


def test_deeply_nested_headers_are_refused():
  deep = zlib.compress(b'[' * 200_000)
  start = struct.pack('<4sHI', b'DJXC', 1, len(deep)) + deep
  with pytest.raises(ValueError, match='header cannot be used'):
    ContainerReader(io.BytesIO(start + struct.pack('<I', zlib.crc32(start))))


def test_a_size_beyond_the_end_of_the_file_takes_no_memory():
  data = written()
  start = ContainerReader(io.BytesIO(data)).position
  cut = CountedReads(data[: start + 1] + struct.pack('<I', 1 << 30) + data[start + 5 :])
  with pytest.raises(ValueError, match='it is cut inside chunk 0'):
    list(ContainerReader(cut).chunks())
  assert max(cut.asked) <= 1 << 20


def test_a_huffman_code_cannot_hold_more_symbols_than_bits():
  check_capacity('huffman', b'ab', 16, 'tokens')
  check_capacity('range', b'', 2**32, 'tokens')
  with pytest.raises(ValueError, match='a chunk claims 17 tokens, which its 2 bytes cannot hold'):
    check_capacity('huffman', b'ab', 17, 'tokens')
