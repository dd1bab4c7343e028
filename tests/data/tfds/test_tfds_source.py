import dataclasses
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from dalle_jax.config import DataConfig
from dalle_jax.data import fingerprints, registry
from dalle_jax.data.checks import pinned_files
from dalle_jax.data.pictures.image import decode, encode_png
from dalle_jax.data.tfds import record_files, tfds_captions, tfds_source


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """The directory of a small prepared data set with many kinds of features."""
  import tensorflow_datasets as tfds

  features = tfds.features

  class Toy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      text = features.Text()
      return tfds.core.DatasetInfo(
        builder=self,
        description='Images of one colour.',
        features=features.FeaturesDict({
          'image': features.Image(shape=(None, None, 3)),
          'image/filename': text,
          'caption': text,
          'several': features.Sequence(text),
          'captions': features.Sequence({'id': features.Scalar(np.int64), 'text': text}),
          'nested': {'in/side': text},
          'label': features.ClassLabel(num_classes=3),
        }),
      )  # fmt: skip

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(10), 'val': self._generate_examples(3)}

    def _generate_examples(self, count):
      for i in range(count):
        yield (
          i,
          {
            'image': encode_png(np.full((4, 5, 3), i, np.uint8)),
            'image/filename': f'{i}.png',
            'caption': f'Größe {i}',
            'several': [] if i == 0 else ['\u200b', f'several {i}', 'other'],
            'captions': [{'id': 7, 'text': f'nested {i}'}, {'id': 8, 'text': 'other'}],
            'nested': {'in/side': f'inside {i}'},
            'label': i % 3,
          },
        )

  builder = Toy(data_dir=str(tmp_path_factory.mktemp('tfds')), file_format='array_record')
  with tfds_source._quiet():
    tfds.disable_progress_bar()
    builder.download_and_prepare()
  return builder.data_path


def test_records_have_image_caption_and_key(prepared):
  source = pickle.loads(pickle.dumps(tfds_source.open_tfds(prepared, 'train', 'caption')))
  assert len(source) == 10
  numbers = set()
  for i in range(10):
    record = source[i]
    number = int(record['key'].removesuffix('.png'))
    assert record['caption'] == f'Größe {number}'
    assert isinstance(record['image'], bytes)
    np.testing.assert_array_equal(decode(record['image']), np.full((4, 5, 3), number))
    numbers.add(number)
  assert numbers == set(range(10))


@pytest.mark.parametrize('key, prefix', [
  ('several', 'several'), ('captions/text', 'nested'), ('nested/in/side', 'inside'), ('image/filename', ''),
])  # fmt: skip
def test_captions_are_found_in_sequences_and_nested_features(prepared, key, prefix):
  source = tfds_source.open_tfds(prepared, 'val', key)
  for i in range(3):
    record = source[i]
    number = record['key'].removesuffix('.png')
    if key == 'image/filename':
      assert record['caption'] == record['key']
    elif key == 'several' and number == '0':
      assert record['caption'] == ''
    else:
      assert record['caption'] == f'{prefix} {number}'


def test_splits_can_be_counted_and_sliced(prepared):
  assert tfds_source.splits(prepared) == {'train': 10, 'val': 3}
  assert tfds_source.full_name(prepared).endswith('toy/1.0.0')
  slices = [tfds_source.open_tfds(prepared, s, 'caption') for s in ('train[:7]', 'train[7:]')]
  assert [len(source) for source in slices] == [7, 3]
  keys = [source[i]['key'] for source in slices for i in range(len(source))]
  assert len(set(keys)) == 10


def test_without_an_id_feature_the_key_is_split_and_index(prepared, monkeypatch):
  monkeypatch.setattr(tfds_source, '_KEYS', ())
  assert tfds_source.open_tfds(prepared, 'val', 'caption')[2]['key'] == 'val/2'


def test_an_unknown_split_is_refused(prepared):
  for split in ('test', 'test[:3]'):
    with pytest.raises(ValueError, match=r'no split .*it has train, val'):
      tfds_source.open_tfds(prepared, split, 'caption')


@pytest.mark.parametrize('key', ['text', 'captions', 'captions/id', 'label', 'image'])
def test_a_caption_key_that_is_not_a_text_feature_is_refused(prepared, key):
  with pytest.raises(ValueError, match=r'config\.data\.caption_key.*caption, captions/text'):
    tfds_source.open_tfds(prepared, 'train', key)


def test_a_directory_that_is_not_a_tfds_data_set_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'no dataset_info\.json'):
    tfds_source.splits(tmp_path / 'nowhere')
  (tmp_path / 'dataset_info.json').write_text('{')
  with pytest.raises(ValueError, match='not a readable TFDS data set'):
    tfds_source.splits(tmp_path)


def test_tfrecord_files_are_refused(prepared, tmp_path):
  for name in ('features.json', 'dataset_info.json'):
    text = (prepared / name).read_text()
    (tmp_path / name).write_text(text)
  info = json.loads((tmp_path / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  (tmp_path / 'dataset_info.json').write_text(json.dumps(info).replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match=r"stored as tfrecord.*file_format='array_record'"):
    tfds_source.open_tfds(tmp_path, 'train', 'caption')


def test_a_data_set_without_an_image_feature_is_refused(prepared, tmp_path):
  (tmp_path / 'dataset_info.json').write_text((prepared / 'dataset_info.json').read_text())
  features = json.loads((prepared / 'features.json').read_text())
  features['featuresDict']['features']['picture'] = features['featuresDict']['features'].pop('image')
  (tmp_path / 'features.json').write_text(json.dumps(features))
  with pytest.raises(ValueError, match=r'no feature "image".*picture'):
    tfds_source.open_tfds(tmp_path, 'train', 'caption')


def test_empty_and_further_captions_are_counted_once(prepared, tmp_path):
  counts = []

  def count(identity='x'):
    counts.clear()
    sources = {split: tfds_source.open_tfds(prepared, split, 'several') for split in ('train', 'val')}
    return tfds_captions.count_captions(sources, identity, tmp_path, lambda *done: counts.append(done)).lines()

  lines = count()
  assert lines[0] == '13 examples found, 13 used, 0 left out'
  assert lines[1].startswith('note 11: with several captions; each epoch uses one of them, chosen at random (')
  assert lines[2].startswith('note 2: used with an empty caption (train ')
  assert counts == [(10, 13), (13, 13)]
  assert count() == lines and counts == []
  (file,) = (tmp_path / 'checked').iterdir()
  for text in ('', '{}', '[]', 'null', file.read_text().replace('13', '14')):
    file.write_text(text)
    assert count() == lines and counts
  assert count('another version') == lines and counts


def test_examples_that_cannot_be_read_are_counted(tmp_path):
  class Broken:
    def __len__(self):
      return 2

    def texts(self, index):
      raise RuntimeError(f'hash mismatch (computed {index:x}a), chunk {index}')

  for _ in range(2):  # counted, then taken from the file
    lines = tfds_captions.count_captions({'train': Broken()}, 0, tmp_path).lines()
    assert lines == [
      '2 examples found, 0 used, 2 left out',
      'left out 2: cannot be read, so that other examples take their places: hash mismatch (train 0, train 1)',
    ]


def test_the_fingerprint_depends_on_the_contents_of_record_files(prepared, tmp_path):
  def fingerprint(path):
    config = DataConfig(source='tfds', path=str(path), caption_key='caption')
    return registry.prepare(config, tmp_path / 'data').fingerprint

  def write_at(file, offset, bits):
    content = bytearray(file.read_bytes())
    content[offset] ^= bits
    file.write_bytes(content)

  path = tmp_path / prepared.parent.name / prepared.name
  shutil.copytree(prepared, path)
  before = fingerprint(prepared)
  assert fingerprint(path) == fingerprint(path) == before  # the same contents at another place
  (file,) = path.glob('*train*')
  write_at(file, 1000, 1)
  after = fingerprint(path)
  assert after != before and fingerprints.same(before[32:], after)  # what earlier versions stored
  write_at(file, 1000, 1)
  assert fingerprint(path) == before
  write_at(next(path.glob('*val*')), 1000, 1)
  assert fingerprint(path) not in (before, after)


def test_a_run_continues_after_records_broke_but_not_on_other_records(prepared, tmp_path):
  path = tmp_path / prepared.parent.name / prepared.name
  shutil.copytree(prepared, path)
  config = DataConfig(source='tfds', path=str(path), caption_key='caption')

  def fingerprint(began=True, **changes):
    run = registry.RunData(tmp_path / 'records.json', began)
    return registry.prepare(dataclasses.replace(config, **changes), tmp_path / 'data', run=run).fingerprint

  (file,) = path.glob('*train*')
  original, before = file.read_bytes(), fingerprint(began=False)

  def damage(count):
    content = bytearray(original)
    for offset in range(150, 3000, 100):
      file.write_bytes(content)
      if pinned_files._num_damaged(str(file)) >= count:
        break
      content[offset] ^= 1
    assert pinned_files._num_damaged(str(file)) == count

  damage(1)
  assert fingerprint() == before
  assert fingerprint(caption_key='image/filename') != before
  assert fingerprint(began=False) != before  # a run that begins now
  file.write_bytes(original)
  assert fingerprint(began=False) == before
  damage(2)
  with pytest.raises(ValueError, match=r'2 of the 13 records .* at most 1 may be bad.*max_bad_share'):
    fingerprint()
  assert fingerprint(max_bad_share=0.2) == before
  other = next(path.glob('*val*'))
  file.write_bytes(other.read_bytes().ljust(len(original), b'\0')[: len(original)])
  info = path / 'dataset_info.json'
  info.write_text(info.read_text().replace('"10"', '"3"'))
  assert fingerprint() != before


def test_record_files_are_read_again_only_after_a_change(tmp_path, monkeypatch):
  files = {str(tmp_path / f'{i}.array_record'): 10 + i for i in range(2)}
  for i, file in enumerate(files):
    Path(file).write_bytes(bytes([i]) * 5)
    os.utime(file, (1, 1))
  read = []

  def digests():
    read.clear()
    return record_files.digests(str(tmp_path), files, tmp_path / 'data', lambda *done: read.append(done))

  expected = [hashlib.sha256(bytes([i]) * 5).hexdigest() for i in range(2)]
  assert digests() == expected and read == [(10, 21), (21, 21)]
  assert digests() == expected and not read
  last = list(files)[1]
  Path(last).write_bytes(b'other')
  os.utime(last, (2, 2))
  assert digests() == [expected[0], hashlib.sha256(b'other').hexdigest()] and read == [(11, 11)]
  Path(last).unlink()
  with pytest.raises(ValueError, match=r'config\.data\.path: .*its file 1\.array_record cannot be read'):
    digests()
