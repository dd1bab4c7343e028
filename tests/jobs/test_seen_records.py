import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from numbered_pictures import save_numbered
from PIL import Image

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.data import registry
from dalle_jax.data.checks import seen
from dalle_jax.jobs import examples, seen_records
from dalle_jax.jobs.evaluate import evaluation_run
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.evaluate.features import Cache, Extractor
from dalle_jax.jobs.evaluate.measured import Measured


@pytest.fixture
def folder(tmp_path):
  """A folder in which two of the held-out images have the pixels of training images, under other names and captions."""
  root = save_numbered(tmp_path / 'images', 30)
  config = make_config(root)
  dataset = registry.prepare(config.data, tmp_path)
  train, held_out = (dataset.open(split).entries for split in ('train', 'validation'))
  assert len(held_out) > 4
  for original, copy in zip(train[:2], held_out[:2], strict=True):
    Image.open(root / original.path).save(root / copy.path, compress_level=1)
  return root, [entry.path for entry in held_out]


def make_config(root, **evaluation):
  return Config.from_dict(
    {
      'data': {'source': 'folder', 'path': str(root), 'image_size': 32, 'validation_fraction': 0.3},
      'evaluation': evaluation,
    }
  )


def test_held_out_images_of_training_are_left_out_and_counted(folder, tmp_path, capsys, monkeypatch):
  root, held_out = folder
  config = make_config(root)
  dataset = registry.prepare(config.data, tmp_path)
  result = seen_records.leave_out(config, dataset, dataset, tmp_path / 'overlaps')
  assert [record['key'] for record in result.open('validation')] == held_out[2:]
  assert len(result.open('train')) == len(dataset.open('train'))
  assert result.fingerprint == dataset.fingerprint
  overlap = result.overlaps['validation']
  assert (overlap.images, overlap.captions, overlap.left_out) == (2, 0, 2)
  assert 'the images of 2 of' in capsys.readouterr().out
  assert len(examples.captions(result, 'validation')) == len(held_out) - 2
  # A second start reads the cache.
  monkeypatch.setattr(seen, 'digests', None)
  assert seen_records.leave_out(config, dataset, dataset, tmp_path / 'overlaps').overlaps == result.overlaps


def test_a_replaced_image_is_hashed_again(folder, tmp_path):
  root, held_out = folder
  config = make_config(root)
  dataset = registry.prepare(config.data, tmp_path)
  seen_records.leave_out(config, dataset, dataset, tmp_path / 'overlaps')
  Image.new('RGB', (32, 32), (1, 2, 3)).save(root / held_out[0])
  changed = registry.prepare(config.data, tmp_path)
  result = seen_records.leave_out(config, changed, changed, tmp_path / 'overlaps')
  assert result.overlaps['validation'].images == 1


def test_a_run_measures_the_same_records_after_a_training_image_broke(folder, tmp_path):
  root, _ = folder
  config, data = make_config(root), registry.RunData(tmp_path / 'records.json', began=False)
  dataset = registry.prepare(config.data, tmp_path, run=data)
  before = seen_records.leave_out(config, dataset, dataset, tmp_path / 'overlaps')
  (root / dataset.open('train').entries[0].path).write_bytes(b'broken')  # held-out images repeat it
  again = registry.prepare(config.data, tmp_path, run=data._replace(began=True))
  after = seen_records.leave_out(config, again, again, tmp_path / 'overlaps')
  assert before.overlaps['validation'].images == 2 and after.overlaps == before.overlaps


def test_a_split_without_new_images_is_left_out(folder, tmp_path):
  root, held_out = folder
  first = registry.prepare(make_config(root).data, tmp_path).open('train').entries[0].path
  for path in held_out:
    Image.open(root / first).save(root / path)
  config = make_config(root)
  dataset = registry.prepare(config.data, tmp_path)
  result = seen_records.leave_out(config, dataset, dataset, tmp_path / 'overlaps')
  assert result.splits == ('train',)
  assert result.overlaps['validation'].left_out == len(held_out)


def test_the_limit_is_obeyed_and_reported(folder, tmp_path, capsys):
  root, _ = folder
  config = make_config(root, num_compared=5)
  dataset = registry.prepare(config.data, tmp_path)
  result = seen_records.leave_out(config, dataset, dataset, tmp_path / 'overlaps')
  assert result.overlaps['validation'].num_compared == 5
  assert 'Only the first 5 of' in capsys.readouterr().out


def test_generated_shapes_share_nothing(tmp_path):
  config = Config.from_dict({'data': {'image_size': 32, 'num_train': 300, 'num_validation': 60, 'num_held_out': 40}})
  dataset = registry.prepare(config.data, tmp_path)
  result = seen_records.leave_out(config, dataset, dataset, tmp_path / 'overlaps')
  for overlap in result.overlaps.values():
    assert (overlap.images, overlap.captions, overlap.left_out) == (0, 0, 0)
  assert set(result.overlaps) == {'validation', 'held_out'}
  assert dataclasses.asdict(result.overlaps['validation'])['total'] == 60


def compared(config, tmp_path, trained_on, **changes):
  """The data set and the note of an evaluation of a model that was trained on `config`."""
  settings = EvaluationSettings(model=str(tmp_path / 'model'), **changes)
  data, data_dir = evaluation_run._data_config(settings, config.data, tmp_path / 'model')
  dataset = registry.prepare(data, data_dir)
  return evaluation_run._new_records(config, dataset, settings, tmp_path / 'model', {'data': trained_on})


def test_an_evaluation_compares_other_data_with_the_training_data(folder, tmp_path, monkeypatch):
  root, _ = folder
  config = make_config(root)
  dataset = registry.prepare(config.data, tmp_path)
  trained_on = dataset.fingerprint
  result, note = compared(config, tmp_path, trained_on)
  assert result.overlaps['validation'].images == 2 and 'changed' not in note
  assert 'have changed since the model was trained' in compared(config, tmp_path, 'other')[1]
  assert compared(config, tmp_path, trained_on, split='train')[1] == 'The split is the training data.'
  # Other data with three of the training images, of which one is in its split 'train'.
  other = tmp_path / 'other'
  other.mkdir()
  paths = [entry.path for entry in dataset.open('train').entries]
  for path in paths[:3]:
    Image.open(root / path).save(other / path)
    (other / f'{path[:-4]}.txt').write_text(f'another {path}')
  for i in range(5):
    Image.new('RGB', (32, 32), (i, 0, 0)).save(other / f'new{i}.png')
    (other / f'new{i}.txt').write_text(f'a new caption {i}')
  for split in ('train', 'validation'):
    result, _ = compared(config, tmp_path, trained_on, data=str(other), split=split)
    assert not {record['key'] for record in result.open(split)} & set(paths)
  assert sum(overlap.images for overlap in result.overlaps.values()) == 3
  # Without the training data, nothing can be compared, and the report says so.
  root.rename(tmp_path / 'moved')
  result, note = compared(config, tmp_path, trained_on, data=str(other))
  assert not result.overlaps and note.startswith('Not compared with the training data')
  prepare = registry.prepare

  def denied(config, data_dir, **options):
    if config.path == str(root):
      raise PermissionError(13, 'Permission denied', str(root))
    return prepare(config, data_dir, **options)

  monkeypatch.setattr(registry, 'prepare', denied)
  assert 'cannot be read: Permission denied' in compared(config, tmp_path, trained_on, data=str(other))[1]


def test_cached_features_are_those_of_the_records_that_remain(folder, tmp_path):
  config = make_config(folder[0])
  dataset = registry.prepare(config.data, tmp_path)
  remaining = seen_records.leave_out(config, dataset, dataset, tmp_path / 'overlaps')
  extractor = Extractor('toy', '', lambda images: images[:, :, 0, 0].astype(np.float32))
  settings, loaded = EvaluationSettings(model='unused'), SimpleNamespace(config=config, caption_tokenizer=None)
  features, pictures = [], []
  for data in (dataset, remaining):
    measured = Measured(
      settings, loaded, data, 3, sharding.one_device_mesh(), extractor=extractor, cache=Cache(tmp_path / 'features')
    )
    features.append(measured.real_features())
    pictures.append(measured.pictures)
  assert not np.array_equal(*pictures)
  for cached, images in zip(features, pictures, strict=True):
    np.testing.assert_array_equal(cached, images[:, :, 0, 0])


def test_an_evaluation_of_training_images_only_is_refused(folder, tmp_path):
  root, held_out = folder
  first = registry.prepare(make_config(root).data, tmp_path).open('train').entries[0].path
  for path in held_out:
    Image.open(root / first).save(root / path)
  with pytest.raises(ValueError, match=r"All \d+ records of the split 'validation' \(--split\) also occur in training"):
    compared(make_config(root), tmp_path, '')
