import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.shapes import builder
from dalle_jax.data.shapes.captions import parse
from dalle_jax.data.shapes.render import render
from dalle_jax.data.shapes.scene import Scene, is_held_out

SETTINGS = dict(
  image_size=32, num_train=40, num_validation=12, num_held_out=9, two_object_fraction=0.5, jitter=1, seed=3
)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  return builder.prepare(tmp_path_factory.mktemp('data'), **SETTINGS)


def test_records_have_true_captions_and_the_rendered_scene(prepared):
  keys, scenes = set(), set()
  for split, count in (('train', 40), ('validation', 12), ('held_out', 9)):
    source = builder.open_split(prepared, split)
    assert len(source) == count
    for index in range(count):
      record = source[index]
      assert set(record) == {'image', 'caption', 'scene', 'key'}
      scene = Scene.from_json(record['scene'])
      assert is_held_out(scene) == (split == 'held_out')
      assert parse(record['caption']).hold(scene)
      image = np.asarray(Image.open(io.BytesIO(record['image'])))
      np.testing.assert_array_equal(image, render(scene, 32))
      assert record['key'] == f'{split}-{index:07d}'
      keys.add(record['key'])
      scenes.add(record['scene'])
  assert len(keys) == 61
  assert len(scenes) > 55  # splits are sampled independently, so a few scenes occur twice


def test_a_source_can_be_pickled(prepared):
  source = builder.open_split(prepared, 'train')
  assert pickle.loads(pickle.dumps(source))[5] == source[5]


def test_examples_do_not_depend_on_the_number_of_examples(prepared, tmp_path):
  smaller = builder.prepare(tmp_path, **{**SETTINGS, 'num_train': 7})
  few, many = builder.open_split(smaller, 'train'), builder.open_split(prepared, 'train')
  assert [few[i] for i in range(7)] == [many[i] for i in range(7)]


def test_other_settings_use_another_directory(prepared, tmp_path):
  other = builder.prepare(tmp_path, **{**SETTINGS, 'seed': 4})
  assert other.parent.name != prepared.parent.name
  assert builder.open_split(other, 'train')[0] != builder.open_split(prepared, 'train')[0]


@pytest.mark.parametrize(('fraction', 'objects'), [(0.0, 1), (1.0, 2)])
def test_two_object_fractions_of_0_and_1_are_exact(tmp_path, fraction, objects):
  source = builder.open_split(builder.prepare(tmp_path, **{**SETTINGS, 'two_object_fraction': fraction}), 'train')
  assert {len(Scene.from_json(source[i]['scene']).objects) for i in range(len(source))} == {objects}


@pytest.mark.parametrize('damage', ['shard', 'info', 'everything'])
def test_a_complete_data_set_is_kept_and_an_incomplete_one_is_written_again(tmp_path, capfd, damage):
  calls = []

  def progress(done, total):
    calls.append((done, total))
    print('progress')

  directory = builder.prepare(tmp_path, **SETTINGS, progress=progress)
  assert calls == [(61, 61)]
  captured = capfd.readouterr()
  assert captured.out == 'progress\n' and captured.err == ''
  before = builder.open_split(directory, 'train')[3]
  assert builder.prepare(tmp_path, **SETTINGS, progress=progress) == directory
  assert len(calls) == 1
  stale = directory.parent / f'incomplete.ABCDEF_{directory.name}'
  stale.mkdir()
  for path in directory.iterdir():
    if damage == 'everything' or {'shard': '-train.', 'info': 'dataset_info'}[damage] in path.name:
      path.unlink()
  assert builder.prepare(tmp_path, **SETTINGS, progress=progress) == directory
  assert len(calls) == 2
  assert builder.open_split(directory, 'train')[3] == before
  assert not stale.exists()
  assert {path.name for path in tmp_path.iterdir()} == {'captioned_shapes'}


def test_invalid_settings_and_splits_are_refused(prepared, tmp_path):
  for name, value in (
    ('num_train', 0),
    ('num_train', 10**9),
    ('two_object_fraction', 1.5),
    ('image_size', 8),
    ('seed', -1),
  ):
    with pytest.raises(ValueError, match=f'config.data.(shapes_)?{name} is {value}'):
      builder.prepare(tmp_path, **{**SETTINGS, name: value})
  assert not list(tmp_path.iterdir())
  with pytest.raises(ValueError, match='choose one of train, validation, held_out'):
    builder.open_split(prepared, 'test')
  with pytest.raises(ValueError, match='no prepared data set'):
    builder.open_split(tmp_path, 'train')


@pytest.mark.parametrize('size', [32, 64, 256])
def test_records_are_smaller_than_the_assumed_bound(size):
  config = builder._make_config(**{**SETTINGS, 'image_size': size, 'two_object_fraction': 1.0})
  for index in range(50):
    example = builder.make_example(config, 'train', index)
    assert sum(map(len, example.values())) < 1_000 + 24 * size


def test_shapes_without_the_builder_import_no_heavy_package():
  code = (
    'import sys, dalle_jax.data.shapes, dalle_jax.data.shapes.captions, dalle_jax.evaluation.judge\n'
    'assert not {"tensorflow_datasets", "jax", "grain"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
