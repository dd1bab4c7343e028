import json
import pickle

import numpy as np
import pytest

from dalle_jax.data import tfds_captions, tfds_source
from dalle_jax.data.image import decode, encode_png


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
  assert lines[1].startswith('note 11: further captions of examples, which are not used (')
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

    def captions(self, index):
      raise RuntimeError(f'damaged at {index}')

  lines = tfds_captions.count_captions({'train': Broken()}, 0, tmp_path).lines()
  assert lines[1] == 'note 2: cannot be read: damaged at 0 (train 0, train 1)'


def test_the_identity_changes_with_the_files(prepared):
  names = [name for name, _, _ in tfds_source.identity(prepared)]
  assert 'dataset_info.json' in names and tfds_source.identity(prepared) == tfds_source.identity(prepared)
