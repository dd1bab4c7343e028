import io
import pickle
import time
import zipfile

import numpy as np
import pytest
from counted_reads import CountedReads

from dalle_jax.importing import pickle_scan, torch_file

PAIRS = b'2\x86' * 60  # duplicate the top of the stack, and make a tuple of the two: 2^60 items
END = b'.'


def wrapped(data):
  """The bytes of the older format, with a pickle in the place of the module."""
  return pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + data


BOMBS = {
  'key': b'}(' + b')' + PAIRS + b'K\x01u' + END,
  'value': b')' + PAIRS + END,
  'set': b'\x8f(' + b')' + PAIRS + b'\x90' + END,
  'frozenset': b'(' + b')' + PAIRS + b'\x91' + END,
  'memo': b')q\x00' + b''.join(b'h%ch%c\x86q%c' % (i, i, i + 1) for i in range(60)) + END,
  'text memo': b')p0\n' + b''.join(b'g%d\ng%d\n\x86p%d\n' % (i, i, i + 1) for i in range(60)) + END,
  'memoize': b')\x94' + b''.join(b'h%ch%c\x86\x94' % (i, i) for i in range(60)) + END,
  'marks': b')' + b''.join(b'q%c0(h%ch%ch%ct' % ((i,) * 4) for i in range(60)) + END,
  'reduced': b')' + b''.join(b'q%c0ctorch\ndevice\n(h%ch%ctR' % ((i,) * 3) for i in range(60)) + END,
  'unchanged': b')' + b'2\x86(u' * 60 + END,
  'persistent': b')' + b'q\x000(X\x06\x00\x00\x00moduleh\x00h\x00tQ' * 60 + END,
  'deep': b')' + b'\x85' * 1_000_000 + END,
}


@pytest.mark.parametrize('name', BOMBS)
@pytest.mark.parametrize('form', ['stream', 'archive'])
def test_tuples_with_more_items_than_instructions_are_refused_at_once(tmp_path, name, form):
  path = tmp_path / 'file.pkl'
  path.write_bytes(wrapped(BOMBS[name]))
  if form == 'archive':
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('archive/data.pkl', BOMBS[name])
  begin = time.monotonic()
  with pytest.raises(
    ValueError, match=r'makes a tuple of more than 2,000 nested items|not a file that torch'
  ) as refusal:
    torch_file.read(path)
  assert time.monotonic() - begin < 5 and len(str(refusal.value)) < 500


@pytest.mark.parametrize('data', [b'\x86.', b')\x86.', b't.', b'(\x86.', b'u.', b'2.', b'q\x00.', b'0.', b'R.', b''])
def test_damaged_pickles_are_refused(data):
  with pytest.raises(ValueError):
    pickle_scan.check(pickle_scan.CappedFile(io.BytesIO(data)))


@pytest.mark.parametrize('protocol', range(2, 6))
def test_ordinary_pickles_pass_and_the_position_is_kept(protocol):
  shared = {'a': ('x', 1, (2, 3)), 'b': frozenset([(1, 2)])}
  value = {'many': [(i, str(i), shared) for i in range(5000)], 'array': np.arange(3), 'set': {(1, 2), 3}, 'none': None}
  file = pickle_scan.CappedFile(io.BytesIO(b'before' + pickle.dumps(value, protocol)))
  file.seek(6)
  pickle_scan.check(file)
  assert file.tell() == 6


def test_a_file_is_not_asked_for_more_bytes_than_it_has():
  small = CountedReads(b'12345')
  file = pickle_scan.CappedFile(small)
  assert file.read(2**40) == b'12345' and file.read(7) == b'' and max(small.asked) == 5
  large = CountedReads(b'\x8e' + (2**40).to_bytes(8, 'little') + b'x.')
  with pytest.raises(ValueError):
    pickle_scan.check(pickle_scan.CappedFile(large))
  assert max(large.asked) < 20
