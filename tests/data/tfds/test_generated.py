"""Damaged data sets: generated ones are made again; data of users are refused and left alone."""

import errno
import json
import pathlib

import pytest
from absl import logging

from dalle_jax.config import DataConfig
from dalle_jax.data import registry
from dalle_jax.data.shapes import builder
from dalle_jax.data.tfds import generated, tfds_source

SETTINGS = {
  'image_size': 32, 'num_train': 30, 'num_validation': 4, 'num_held_out': 4, 'two_object_fraction': 0.5, 'jitter': 1,
  'seed': 0,
}  # fmt: skip


@pytest.fixture
def warnings(monkeypatch):
  lines = []

  def warn(message, *args):
    if 'made again' in message:  # TFDS has warnings too, which its log level hides from users
      lines.append(message % args)

  monkeypatch.setattr(logging, 'warning', warn)
  return lines


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
  """The names and bytes of the files of a data set."""
  directory = builder.prepare(tmp_path_factory.mktemp('data'), **SETTINGS)
  return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture
def prepared(tmp_path, contents):
  """A copy of the data set in a data directory, without hashes, as earlier versions wrote it."""
  config = builder._make_config(**SETTINGS)
  directory = tmp_path / builder.CaptionedShapes.name / config.name / str(builder.CaptionedShapes.VERSION)
  directory.mkdir(parents=True)
  for name, content in contents.items():
    if name != generated.HASHES:
      (directory / name).write_bytes(content)
  return directory


def _flip(position):
  def damage(directory):
    (file,) = directory.glob('*-train.*')
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)

  return damage


def _cut(pattern, length):
  def damage(directory):
    (file,) = directory.glob(pattern)
    file.write_bytes(file.read_bytes()[:length])

  return damage


def _replace(old, new):
  def damage(directory):
    file = directory / 'dataset_info.json'
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new))

  return damage


def _unlink(pattern):
  def damage(directory):
    (file,) = directory.glob(pattern)
    file.unlink()

  return damage


DAMAGES = {
  'a flipped bit': _flip(100), 'half a file': _cut('*-train.*', 70_000), 'an empty file': _cut('*-validation.*', 0),
  'a missing shard': _unlink('*-held_out.*'), 'half of the information': _cut('dataset_info.json', 300),
  'empty information': _cut('dataset_info.json', 0), 'another count': _replace(b'"30"', b'"29"'),
  'half of the features': _cut('features.json', 50), 'no features': _unlink('features.json'),
}  # fmt: skip


@pytest.mark.parametrize('hashed', [True, False], ids=['hashes', 'no hashes'])
@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_generated_data_are_made_again_with_one_line(prepared, tmp_path, contents, warnings, damage, hashed):
  if hashed:
    generated.record(prepared)
  DAMAGES[damage](prepared)
  assert builder.prepare(tmp_path, **SETTINGS) == prepared
  assert len(warnings) == 1 and 'is damaged and is made again: ' in warnings[0]
  source = builder.open_split(prepared, 'train')
  example = builder.make_example(builder._make_config(**SETTINGS), 'train', 29)
  assert len(source) == 30 and source[29] == example
  builder.prepare(tmp_path, **SETTINGS)
  assert len(warnings) == 1


def test_hashes_find_a_flipped_bit_that_readers_ignore(prepared, tmp_path, warnings):
  generated.record(prepared)
  _flip(-1)(prepared)  # in the padding
  builder.prepare(tmp_path, **SETTINGS)
  assert len(warnings) == 1 and 'the contents of captioned_shapes-train' in warnings[0]


def test_intact_data_of_earlier_versions_are_read_once_and_kept(prepared, tmp_path, warnings, monkeypatch):
  times = {file.name: file.stat().st_mtime_ns for file in prepared.iterdir()}
  for name in ('hashes.json.17.tmp', '.writing-0123'):  # starts that were killed left them
    (prepared / name).write_text('{')
  builder.prepare(tmp_path, **SETTINGS)
  monkeypatch.setattr(builder, 'open_split', None)  # from now on, hashes are enough
  builder.prepare(tmp_path, **SETTINGS)
  assert not warnings
  assert {name: (prepared / name).stat().st_mtime_ns for name in times} == times
  assert set(json.loads((prepared / generated.HASHES).read_text())) == set(times)
  generated.remove(prepared, tuple(times))
  assert not prepared.exists()


@pytest.mark.parametrize(
  'text', ['', '{', '{}', '[]', 'null', '5', '{"dataset_info.json": 3}', '{"x": [1, "y"]}', '[' * 10**5]
)
def test_damaged_hashes_make_the_data_again(prepared, tmp_path, warnings, text):
  (prepared / generated.HASHES).write_text(text)
  builder.prepare(tmp_path, **SETTINGS)
  assert len(warnings) == 1
  assert generated.damage(prepared, lambda: None) == ''


@pytest.mark.parametrize('name', [generated.HASHES, 'dataset_info.json'])
def test_files_that_may_not_be_read_are_not_damaged(prepared, tmp_path, monkeypatch, name):
  real_open = pathlib.Path.open

  def opened(path, *arguments, **options):
    if path.name == name:
      raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    return real_open(path, *arguments, **options)

  generated.record(prepared)
  monkeypatch.setattr(pathlib.Path, 'open', opened)
  with pytest.raises(PermissionError):
    generated.damage(prepared, lambda: None)


def test_files_of_others_are_never_removed(prepared, tmp_path):
  (prepared / 'notes.txt').write_text('mine')
  _flip(100)(prepared)
  before = {file.name: file.read_bytes() for file in prepared.iterdir()}
  with pytest.raises(ValueError, match=r'also has notes\.txt\. Move .*config\.data\.data_dir'):
    builder.prepare(tmp_path, **SETTINGS)
  assert {file.name: file.read_bytes() for file in prepared.iterdir()} == before


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_data_of_others_are_refused_and_left_alone(prepared, tmp_path, damage):
  if damage == 'a flipped bit':
    return  # only reading a record finds it; training then takes another record
  DAMAGES[damage](prepared)
  before = {file.name: file.read_bytes() for file in prepared.iterdir()}
  with pytest.raises(ValueError, match=r'is damaged|is not a readable TFDS data set'):
    registry.prepare(DataConfig(source='tfds', path=str(prepared)), tmp_path)
    tfds_source.open_tfds(prepared, 'held_out', 'caption')
  assert {file.name: file.read_bytes() for file in prepared.iterdir()} == before
