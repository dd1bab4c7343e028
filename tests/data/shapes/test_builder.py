import errno
import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.shapes import builder, partition
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
  keys = set()
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
  assert len(keys) == 61


def contents(example):
  """What the splits must not share: PNG bytes, pixels, scene in either order, caption, and what the caption says."""
  scene = Scene.from_json(example['scene'])
  pixels = np.asarray(Image.open(io.BytesIO(example['image']))).tobytes()
  return {
    'file': example['image'],
    'pixels': pixels,
    'scene': (scene.background, *sorted(json.dumps(vars(shape)) for shape in scene.objects)),
    'caption': ' '.join(example['caption'].lower().split()).rstrip('.'),
    'description': partition.canonical(parse(example['caption'])),
    'scene without jitter': partition.canonical(partition.describe(scene)),
  }


@pytest.mark.parametrize(
  ('image_size', 'two_object_fraction', 'jitter'), [(32, 0.4, 0), (64, 0.0, 1), (16, 1.0, 0), (40, 0.5, 1)]
)
def test_splits_share_no_picture_scene_or_caption(image_size, two_object_fraction, jitter):
  settings = {
    **SETTINGS, 'image_size': image_size, 'two_object_fraction': two_object_fraction, 'jitter': jitter
  }  # fmt: skip
  found = {}
  for split, count in (('train', 600), ('validation', 250), ('held_out', 150)):
    # A training split of another seed must not overlap either.
    seeds = (3, 4) if split == 'train' else (3,)
    examples = [
      contents(builder.make_example(builder._make_config(**{**settings, 'seed': seed}), split, index))
      for seed in seeds
      for index in range(count)
    ]
    found[split] = {name: {example[name] for example in examples} for name in examples[0]}
  for first, second in (('train', 'validation'), ('train', 'held_out'), ('validation', 'held_out')):
    overlaps = {name: len(values & found[second][name]) for name, values in found[first].items()}
    assert set(overlaps.values()) == {0}, (first, second, overlaps)
  assert len(found['validation']['scene']) > 100
  assert len(found['validation']['caption']) > 150


def test_held_out_examples_of_version_1_are_unchanged():
  config = builder._make_config(**SETTINGS)
  captions = [builder.make_example(config, 'held_out', index)['caption'] for index in range(3)]
  assert captions == [
    'a small cyan square under a small yellow triangle on a black background',
    'a purple circle',
    'a small orange triangle',
  ]


def test_data_of_version_1_are_kept_beside_the_new_ones(prepared, tmp_path):
  old = tmp_path / prepared.parent.parent.name / prepared.parent.name / '1.0.0'
  old.mkdir(parents=True)
  (old / 'dataset_info.json').write_text('{}')
  new = builder.prepare(tmp_path, **SETTINGS)
  assert new == old.parent / '2.0.0'
  assert (old / 'dataset_info.json').read_text() == '{}'
  assert json.loads((new / 'dataset_info.json').read_text())['version'] == '2.0.0'


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


def test_data_in_a_directory_that_cannot_be_written_can_be_read(prepared, monkeypatch):
  def refuse(file, mode='r', *arguments):
    raise PermissionError(errno.EACCES, 'Permission denied', os.fspath(file))

  monkeypatch.setattr(builder, 'open', refuse, raising=False)
  assert builder.prepare(prepared.parents[2], **SETTINGS) == prepared


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
