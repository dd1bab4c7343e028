"""Conversion of TFDS data sets from tfrecord to array_record files."""

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import crc32c
import numpy as np
import pytest
from PIL import Image

from dalle_jax.config import DataConfig
from dalle_jax.data import registry
from dalle_jax.data.tfds import tfrecords

TOOL = Path(__file__).parents[3] / 'tools' / 'convert_tfds.py'


def frame(record):
  def masked(data):
    checksum = crc32c.crc32c(data)
    return struct.pack('<I', ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)

  length = struct.pack('<Q', len(record))
  return length + masked(length) + record + masked(record)


def example(number):
  """A tf.train.Example with the features 'image' and 'caption', as protocol buffers are encoded."""

  def field(number, content):
    size, head = len(content), bytes([number << 3 | 2])
    length = b''
    while size >= 128:
      length, size = length + bytes([size % 128 | 128]), size // 128
    return head + length + bytes([size]) + content

  picture = io.BytesIO()
  Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)).save(picture, 'PNG')
  features = {b'image': picture.getvalue(), b'caption': b'number %d' % number}
  entries = [field(1, field(1, name) + field(2, field(1, field(1, data)))) for name, data in features.items()]
  return field(1, b''.join(entries))


@pytest.fixture
def prepared(tmp_path):
  """A data set of five examples in two tfrecord files."""
  root = tmp_path / 'toy' / '1.0.0'
  root.mkdir(parents=True)
  import tensorflow_datasets as tfds

  features = tfds.features.FeaturesDict({'image': tfds.features.Image(), 'caption': tfds.features.Text()})
  features.save_metadata(str(root), feature_name=None)
  (root / 'features.json').write_text(json.dumps(features.to_json()))
  for shard, numbers in enumerate(((0, 1, 2), (3, 4))):
    (root / f'toy-train.tfrecord-{shard:05d}-of-00002').write_bytes(b''.join(frame(example(n)) for n in numbers))
  info = {
    'name': 'toy', 'version': '1.0.0', 'fileFormat': 'tfrecord', 'moduleName': 'toy', 'description': '',
    'splits': [{
      'name': 'train', 'shardLengths': ['3', '2'], 'numBytes': '100',
      'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    }],
  }  # fmt: skip
  (root / 'dataset_info.json').write_text(json.dumps(info))
  return root


def test_a_converted_data_set_has_the_same_records_in_the_same_order(prepared, tmp_path):
  out = tmp_path / 'out' / '1.0.0'
  done = subprocess.run(
    [sys.executable, str(TOOL), f'--path={prepared}', f'--out={out}'], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert '5 records' in done.stdout
  dataset = registry.prepare(DataConfig(path=str(out), validation_fraction=0.0), tmp_path / 'data')
  source = dataset.open('train')
  assert [source[i]['caption'] for i in range(5)] == [f'number {i}' for i in range(5)]
  assert all(Image.open(io.BytesIO(source[i]['image'])).size == (32, 32) for i in range(5))


def test_finished_files_are_kept_and_the_rest_is_made(prepared, tmp_path):
  out = tmp_path / 'out'
  tfrecords.convert(prepared, out)
  first, second = sorted(out.glob('*.array_record-*'))
  stamp = first.stat().st_mtime_ns
  second.unlink()
  assert tfrecords.convert(prepared, out) == 5
  assert first.stat().st_mtime_ns == stamp and second.exists()


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda data: data[:-7], 'record 1 is'),
    (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], 'record 0 is damaged or cut'),
    (lambda data: b'\xff' * 8 + data[8:], 'record 0 is damaged or cut'),
    (lambda data: data + data, 'has 4 records, but dataset_info.json says 2'),
  ],
)
def test_damaged_files_are_refused_by_name(prepared, tmp_path, damage, message):
  file = prepared / 'toy-train.tfrecord-00001-of-00002'
  file.write_bytes(damage(file.read_bytes()))
  with pytest.raises(ValueError, match=rf'toy-train\.tfrecord-00001-of-00002.*{message}'):
    tfrecords.convert(prepared, tmp_path / 'out')
  assert not (tmp_path / 'out' / 'dataset_info.json').exists()


def test_what_is_no_tfrecord_data_set_is_refused(prepared, tmp_path):
  with pytest.raises(ValueError, match=r'dataset_info\.json cannot be read'):
    tfrecords.convert(tmp_path, tmp_path / 'out')
  (prepared / 'toy-train.tfrecord-00000-of-00002').unlink()
  with pytest.raises(ValueError, match=r'lacks 1 of 2 files, such as toy-train\.tfrecord-00000-of-00002'):
    tfrecords.convert(prepared, tmp_path / 'out')
  info = json.loads((prepared / 'dataset_info.json').read_text())
  (prepared / 'dataset_info.json').write_text(json.dumps({**info, 'fileFormat': 'array_record'}))
  with pytest.raises(ValueError, match='stored as array_record'):
    tfrecords.convert(prepared, tmp_path / 'out')
