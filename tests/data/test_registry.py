import dataclasses
import os
import shutil

import pytest
from PIL import Image

from dalle_jax.config import DataConfig
from dalle_jax.config import data as config_lib
from dalle_jax.data import registry
from dalle_jax.data.pictures.image import decode
from dalle_jax.data.shapes import builder
from dalle_jax.data.tfds import tfds_captions, tfds_source


@pytest.fixture
def image_folder(tmp_path):
  folder = tmp_path / 'images'
  folder.mkdir()
  for i in range(30):
    Image.new('RGB', (4, 4), (i, 0, 0)).save(folder / f'{i}.png')
    (folder / f'{i}.txt').write_text(f'number {i}')
  return folder


def test_the_registry_has_every_source_that_the_configuration_allows():
  assert ('auto', *registry.SOURCES) == config_lib.SOURCES  # 'auto' is resolved before


def test_a_folder_is_split_into_train_and_validation(image_folder, tmp_path):
  config = DataConfig(source='folder', path=str(image_folder), validation_fraction=0.3)
  dataset = registry.prepare(config, tmp_path)
  assert dataset.splits == ('train', 'validation')
  assert len(dataset.open('train')) + len(dataset.open('validation')) == 30
  assert dataset.open('train')[0]['caption'].startswith('number ')
  with pytest.raises(ValueError, match=r"no split 'test'; it has train, validation"):
    dataset.open('test')


def test_a_folders_fingerprint_depends_on_captions_and_split_but_not_on_image_size(image_folder, tmp_path):
  config = DataConfig(source='folder', path=str(image_folder), validation_fraction=0.3)
  fingerprint = registry.prepare(config, tmp_path).fingerprint
  assert registry.prepare(config, tmp_path).fingerprint == fingerprint
  assert registry.prepare(dataclasses.replace(config, image_size=64), tmp_path).fingerprint == fingerprint
  assert registry.prepare(dataclasses.replace(config, validation_fraction=0.9), tmp_path).fingerprint != fingerprint
  (image_folder / '0.txt').write_text('another caption')
  assert registry.prepare(config, tmp_path).fingerprint != fingerprint


def test_a_folders_fingerprint_depends_on_contents_but_not_on_place_or_time(image_folder, tmp_path):
  def fingerprint(path):
    return registry.prepare(DataConfig(source='folder', path=str(path)), tmp_path).fingerprint

  before = fingerprint(image_folder)
  shutil.copytree(image_folder, tmp_path / 'elsewhere')
  os.utime(tmp_path / 'elsewhere' / '3.png', (1, 1))
  assert fingerprint(tmp_path / 'elsewhere') == before
  Image.new('RGB', (4, 4), (3, 0, 1)).save(tmp_path / 'elsewhere' / '3.png')
  after = fingerprint(tmp_path / 'elsewhere')
  assert after != before
  assert after[-64:] == before[-64:]  # what earlier versions stored: names, captions and splits


def test_a_folder_has_an_account(image_folder, tmp_path):
  (image_folder / '7.txt').unlink()
  config = DataConfig(source='folder', path=str(image_folder), max_image_pixels=16)
  Image.new('RGB', (5, 4)).save(image_folder / '8.png')
  for _ in range(2):
    lines = registry.prepare(config, tmp_path / 'data').account.lines()
    assert lines[0] == '30 pictures found, 28 used, 2 left out'
    assert any('the limit of 16' in line and '8.png' in line for line in lines)


@pytest.mark.parametrize('counts, fraction, expected', [
  ({'train': 100, 'val': 9, 'validation': 5}, 0.1, {'train': 'train', 'validation': 'validation'}),
  ({'train': 100, 'test': 9, 'val': 5}, 0.1, {'train': 'train', 'validation': 'val'}),
  ({'train': 100, 'test': 9}, 0.1, {'train': 'train', 'validation': 'test'}),
  ({'train': 100, 'test': 0}, 0.1, {'train': 'train[:90]', 'validation': 'train[90:]'}),
  ({'train': 3}, 0.1, {'train': 'train[:2]', 'validation': 'train[2:]'}),
  ({'train': 3}, 1.0, {'train': 'train[:1]', 'validation': 'train[1:]'}),
  ({'train': 3}, 0.0, {'train': 'train'}),
  ({'train': 1}, 0.5, {'train': 'train'}),
])  # fmt: skip
def test_tfds_validation_is_an_existing_split_or_the_end_of_train(monkeypatch, tmp_path, counts, fraction, expected):
  opened = []
  monkeypatch.setattr(tfds_source, 'splits', lambda path: counts)
  monkeypatch.setattr(tfds_source, 'full_name', lambda path: 'toy/1.0.0')
  monkeypatch.setattr(tfds_source, 'record_files', lambda path, splits: {})
  monkeypatch.setattr(tfds_captions, 'count_captions', lambda sources, identity, directory, progress: None)
  monkeypatch.setattr(tfds_source, 'open_tfds', lambda path, split, key: opened.append((path, split, key)) or 'x')
  config = DataConfig(source='tfds', path='somewhere', validation_fraction=fraction, caption_key='c')
  dataset = registry.prepare(config, tmp_path)
  assert dataset.splits == tuple(expected)
  for split, expression in expected.items():
    dataset.open(split)
    assert opened[-1] == ('somewhere', expression, 'c')


def test_a_tfds_data_set_without_train_split_is_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(tfds_source, 'splits', lambda path: {'all': 3})
  with pytest.raises(ValueError, match='no split "train"; it has all'):
    registry.prepare(DataConfig(source='tfds', path='somewhere'), tmp_path)


def test_captioned_shapes_are_generated_and_opened(tmp_path):
  config = DataConfig(num_train=6, num_validation=3, num_held_out=2, image_size=32)
  counts = []
  dataset = registry.prepare(config, tmp_path, lambda done, total: counts.append((done, total)))
  assert {split: len(dataset.open(split)) for split in dataset.splits} == {'train': 6, 'validation': 3, 'held_out': 2}
  assert counts[-1] == (11, 11)
  record = dataset.open('held_out')[1]
  assert {'image', 'caption', 'key', 'scene'} <= record.keys()
  assert decode(record['image']).shape == (32, 32, 3)
  assert registry.prepare(config, tmp_path).fingerprint == dataset.fingerprint
  assert registry.prepare(dataclasses.replace(config, num_train=7), tmp_path).fingerprint != dataset.fingerprint
  with pytest.MonkeyPatch.context() as patch:  # another version has other examples
    patch.setattr(builder, 'VERSION', '0.9.0')
    assert registry.prepare(config, tmp_path).fingerprint != dataset.fingerprint
