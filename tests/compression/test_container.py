import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.compression import container
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
  """The payloads read until the end, or an error."""
  reader, payloads = ContainerReader(io.BytesIO(data)), []
  contents = iter(contents)
  for chunk in reader.chunks():
    reader.accept(chunk, next(contents))
    payloads.append(chunk.payload)
  reader.check_whole()
  return payloads


def test_what_was_written_is_read():
  reader = ContainerReader(io.BytesIO(written()))
  assert reader.header == HEADER and reader.coded_on == 'platform cpu'
  assert read(written()) == [payload for _, _, payload in CHUNKS]
  assert read(written([])) == []


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_changed_byte_goes_unnoticed(data):
  whole = written()
  place = data.draw(st.integers(0, len(whole) - 1))
  changed = bytearray(whole)
  changed[place] ^= data.draw(st.integers(1, 255))
  with pytest.raises(ValueError):
    read(bytes(changed))


def test_no_cut_goes_unnoticed_and_what_is_missing_is_named():
  whole = written()
  for size in range(len(whole)):
    with pytest.raises(ValueError, match=r'cut|DJXC'):
      read(whole[:size])
  with pytest.raises(Damaged, match='after its end'):
    read(whole + b'x')


def test_whole_chunks_before_a_damage_are_read():
  whole = bytearray(written())
  whole[-60] ^= 1  # in the last chunk
  reader = ContainerReader(io.BytesIO(bytes(whole)))
  found = []
  with pytest.raises(Damaged, match='chunk 2'):
    for chunk in reader.chunks():
      reader.accept(chunk, CHUNKS[len(found)][1])
      found.append(chunk.payload)
  assert found == [b'\x01\x02', b'\x03'] and reader.num_chunks == 2


def test_a_missing_chunk_is_noticed():
  one, two = written(CHUNKS[:1]), written(CHUNKS[:2])
  end = len(one) - 49
  shorter = one[:end] + two[-49:]
  with pytest.raises(Damaged, match='1 of 2 chunks'):
    read(shorter)


def test_other_content_is_named_as_other_probabilities():
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
def test_headers_that_cannot_be_are_refused(change):
  values = {**{name: getattr(HEADER, name) for name in HEADER.__dataclass_fields__}, **change}
  with pytest.raises(ValueError, match=str(next(iter(change)))):
    Header(**values)


def test_a_header_that_unpacks_to_more_than_allowed_is_refused(monkeypatch):
  data = written(header=Header(**{**HEADER.__dict__, 'settings': {'names': 'x' * 5_000}}))
  monkeypatch.setattr(container, 'MAX_HEADER', 4_000)
  with pytest.raises(ValueError, match='4,000 bytes'):
    ContainerReader(io.BytesIO(data))


def test_content_that_is_not_what_was_written_is_noticed_at_the_end():
  reader = ContainerReader(io.BytesIO(written()))
  for chunk in reader.chunks():
    reader.skip(chunk)
  with pytest.raises(Damaged, match='not the ones that were written'):
    reader.check_whole()


def test_files_of_version_1_stay_readable():
  # A file of version 1, as people may have it.
  assert read(bytes.fromhex(GOLDEN)) == [payload for _, _, payload in CHUNKS]
  assert ContainerReader(io.BytesIO(bytes.fromhex(GOLDEN))).header == HEADER


def test_payloads_and_headers_have_limits(monkeypatch):
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
