"""Copies of pictures in shards, as tools/prepare_data.py makes them."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from numbered_pictures import save_numbered
from PIL import Image

from dalle_jax.config import DataConfig
from dalle_jax.data import preparation, registry
from dalle_jax.data.pictures import image
from dalle_jax.data.pictures.crops import reduce_shorter_side
from dalle_jax.data.shards import picture_records

NUM = 11


@pytest.fixture
def folder(tmp_path):
  """Pictures of 32 x 32 pixels, one of 48 x 96, one that is damaged, and one without a caption."""
  root = save_numbered(tmp_path / 'pictures', NUM)
  (root / 'bad.png').write_bytes((root / '00.png').read_bytes()[:-30])
  (root / 'bad.txt').write_text('bad')
  pixels = np.random.default_rng(1).integers(0, 256, (48, 96, 3), np.uint8)
  Image.fromarray(pixels).save(root / 'large.png')
  (root / 'large.txt').write_text('large\nand wide')
  (root / '05.txt').unlink()
  return root


def prepare(path, out, size=0, per_shard=4, **values):
  return preparation.prepare(DataConfig(path=str(path), **values), out, size, per_shard)


def records_of(path, tmp_path, **values):
  config = DataConfig(path=str(path), validation_fraction=0.0, **values)
  source = registry.prepare(config, tmp_path / 'data', needs_captions=False).open('train')
  return {source.name(i): (source.captions(i), source[i]['image']) for i in range(len(source))}


def test_every_readable_picture_is_copied_once_with_its_captions(folder, tmp_path):
  account, manifest = prepare(folder, tmp_path / 'out')
  assert (account.found, account.used, account.num_left_out) == (NUM + 2, NUM + 1, 1)
  assert (manifest['count'], manifest['written'], manifest['left_out']) == (NUM + 2, NUM + 1, 1)
  assert [shard['count'] for shard in manifest['shards']] == [4, 4, 3, 1]  # the damaged picture is the 12th
  assert (manifest['source'], manifest['size'], manifest['per_shard']) == ('folder', 0, 4)
  assert manifest == json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  for shard in manifest['shards']:
    data = (tmp_path / 'out' / f'{shard["name"]}.array_record').read_bytes()
    assert (shard['bytes'], shard['sha256']) == (len(data), hashlib.sha256(data).hexdigest())
  expected = records_of(folder, tmp_path)
  assert expected['large.png'][0] == ('large', 'and wide') and expected['05.png'][0] == ()
  assert records_of(tmp_path / 'out', tmp_path) == expected


def test_larger_pictures_are_reduced_and_others_are_kept(folder, tmp_path):
  prepare(folder, tmp_path / 'out', size=32)
  copied, original = records_of(tmp_path / 'out', tmp_path), records_of(folder, tmp_path)
  reduced = image.decode(copied['large.png'][1])
  assert reduced.shape == (32, 64, 3)
  np.testing.assert_array_equal(reduced, reduce_shorter_side(image.decode(original['large.png'][1]), 32))
  assert copied['01.png'] == original['01.png']


@pytest.mark.parametrize('fails_at', [1, 6, 13])
def test_a_stopped_copy_goes_on_without_loss_or_repeats(folder, tmp_path, monkeypatch, fails_at):
  whole = prepare(folder, tmp_path / 'whole')[1]
  calls, copied = [], preparation._copied

  def stopped(store, picture, size, max_pixels):
    calls.append(picture.path)
    if len(calls) == fails_at:
      raise KeyboardInterrupt
    return copied(store, picture, size, max_pixels)

  monkeypatch.setattr(preparation, '_copied', stopped)
  with pytest.raises(KeyboardInterrupt):
    prepare(folder, tmp_path / 'out', num_threads=1)
  assert not (tmp_path / 'out' / 'manifest.json').exists() and not list((tmp_path / 'out').glob('*.tmp'))
  finished = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').glob('*.array_record')}
  (tmp_path / 'out' / f'pictures-00002.array_record.{2**22 + 1}.tmp').write_bytes(b'of a killed process')
  assert prepare(folder, tmp_path / 'out', num_threads=1)[1] == whole
  assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
  assert not list((tmp_path / 'out').glob('*.tmp'))
  assert records_of(tmp_path / 'out', tmp_path) == records_of(tmp_path / 'whole', tmp_path)


def test_a_copy_of_other_data_or_with_other_options_is_refused(folder, tmp_path):
  prepare(folder, tmp_path / 'out')
  with pytest.raises(ValueError, match=r'has the beginning of other data \(size differ\)'):
    prepare(folder, tmp_path / 'out', size=16)
  (folder / '00.txt').write_text('another caption')
  with pytest.raises(ValueError, match=r'other data \(listing differ\)'):
    prepare(folder, tmp_path / 'out')
  with pytest.raises(ValueError, match='is also --path'):
    prepare(folder, folder)
  with pytest.raises(ValueError, match='only folder, tars, parquet, records can be prepared'):
    prepare(f'{folder}:0.5,{folder}:0.5', tmp_path / 'mixture')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='has no pictures'):
    prepare(tmp_path / 'empty', tmp_path / 'none')


def test_a_format_of_another_version_is_named(folder, tmp_path):
  prepare(folder, tmp_path / 'out')
  file = tmp_path / 'out' / picture_records.MANIFEST
  file.write_text(json.dumps({**json.loads(file.read_text()), 'format': 9}))
  with pytest.raises(ValueError, match='has format 9; this version reads format 1'):
    records_of(tmp_path / 'out', tmp_path)


def test_pictures_of_one_key_in_two_tars_are_both_copied(folder, tmp_path):
  (tmp_path / 'tars').mkdir()
  for shard, number in enumerate((1, 2)):
    with tarfile.open(tmp_path / 'tars' / f'{shard}.tar', 'w') as tar:
      tar.add(folder / f'{number:02d}.png', 'a.png')
      info = tarfile.TarInfo('a.txt')
      info.size = 3
      tar.addfile(info, io.BytesIO(b'%03d' % number))
  prepare(tmp_path / 'tars', tmp_path / 'out')
  expected = records_of(tmp_path / 'tars', tmp_path)
  assert len(expected) == 2 and records_of(tmp_path / 'out', tmp_path) == expected


def test_the_skip_list_is_honoured(folder, tmp_path):
  (tmp_path / 'skip.txt').write_text('bad.png\n03.png\n')
  account, manifest = prepare(folder, tmp_path / 'out', skip_list=str(tmp_path / 'skip.txt'))
  assert (account.found, manifest['written'], manifest['left_out']) == (NUM + 2, NUM, 0)
  assert '03.png' not in records_of(tmp_path / 'out', tmp_path)
