import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dalle_jax.data import folder
from dalle_jax.data.folder import Entry, open_folder, scan, split_by_name, verify

SHARED = Path(os.environ.get('DALLE_JAX_SHARED_DATA', Path(__file__).parents[2].parent / 'shared' / 'data'))


def write_image(path, color='red'):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (8, 6), color).save(path)


def write_lines(path, lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines))


@pytest.fixture
def warnings(monkeypatch):
  """The list of warnings that the test logs."""
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda message, *args: lines.append(message % args))
  return lines


def test_metadata_jsonl_is_read(tmp_path):
  write_image(tmp_path / 'images/cat.png')
  write_image(tmp_path / 'dog.jpg')
  write_lines(tmp_path / 'metadata.jsonl', [
    {'file_name': 'images/cat.png', 'text': ' a Cat '}, '', {'file_name': 'dog.jpg', 'caption': ['a dog', 'a hound']},
  ])  # fmt: skip
  assert scan(tmp_path) == [Entry('dog.jpg', 'a dog'), Entry('images/cat.png', 'a Cat')]


def test_metadata_csv_is_read(tmp_path):
  write_image(tmp_path / 'cat.png')
  (tmp_path / 'metadata.csv').write_text('\ufefffile_name,text\r\ncat.png,"a cat, sitting"\r\n', encoding='utf-8')
  assert scan(tmp_path) == [Entry('cat.png', 'a cat, sitting')]


def test_file_names_are_relative_to_their_metadata_file(tmp_path):
  write_image(tmp_path / 'a/x.png')
  write_image(tmp_path / 'b/x.png')
  write_lines(tmp_path / 'a/metadata.jsonl', [{'file_name': 'x.png', 'text': 'one'}])
  write_lines(tmp_path / 'c/metadata.jsonl', [{'file_name': '../b/x.png', 'text': 'two'}])
  assert scan(tmp_path) == [Entry('a/x.png', 'one'), Entry('b/x.png', 'two')]


def test_caption_files_beside_images_are_read(tmp_path):
  for name in ('a.png', 'deep/er/b.JPG', 'no_caption.png', '.hidden.png'):
    write_image(tmp_path / name)
  write_lines(tmp_path / 'a.txt', ['', '  first  ', 'second'])
  write_lines(tmp_path / 'deep/er/b.txt', ['büro'])
  write_lines(tmp_path / '.hidden.txt', ['hidden'])
  assert scan(tmp_path) == [Entry('a.png', 'first'), Entry('deep/er/b.JPG', 'büro')]


def test_records_have_the_encoded_image_caption_and_path(tmp_path):
  write_image(tmp_path / 'a.png')
  write_lines(tmp_path / 'a.txt', ['A'])
  source = open_folder(tmp_path, validation_fraction=0.5)['train']
  source = pickle.loads(pickle.dumps(source))
  assert len(source) == 1
  assert source[0] == {'image': (tmp_path / 'a.png').read_bytes(), 'caption': 'A', 'key': 'a.png'}
  with pytest.raises(IndexError):
    source[1]


def test_only_the_first_listing_of_an_image_is_used(tmp_path, warnings):
  write_image(tmp_path / 'a.png')
  write_lines(tmp_path / 'metadata.jsonl', [{'file_name': f, 'text': t} for f, t in [('a.png', 'x'), ('./a.png', 'y')]])
  assert scan(tmp_path) == [Entry('a.png', 'x')]
  assert '1 further captions' in warnings[0]


@pytest.mark.parametrize('line, message', [
  ('{"file_name": "a.png", ', 'not JSON'),
  ('[1]', 'not a JSON object'),
  ('{"text": "x"}', '"file_name" is missing'),
  ('{"file_name": "a.png"}', 'neither "text" nor "caption"'),
  ('{"file_name": "a.png", "text": 3}', 'neither "text" nor "caption"'),
  ('{"file_name": "../a.png", "text": "x"}', 'leads out of the folder'),
  ('{"file_name": "b/../../a.png", "text": "x"}', 'leads out of the folder'),
  ('{"file_name": "/etc/a.png", "text": "x"}', 'leads out of the folder'),
  ('{"file_name": "a\\u0000.png", "text": "x"}', 'leads out of the folder'),
])  # fmt: skip
def test_errors_name_the_invalid_jsonl_line(tmp_path, line, message):
  write_image(tmp_path / 'a.png')
  write_lines(tmp_path / 'metadata.jsonl', [{'file_name': 'a.png', 'text': 'x'}, line])
  with pytest.raises(ValueError, match=rf'metadata\.jsonl, line 2: .*{message}'):
    scan(tmp_path)


def test_errors_name_the_invalid_csv_line(tmp_path):
  (tmp_path / 'metadata.csv').write_text('file_name,text\na.png\n')
  with pytest.raises(ValueError, match=r'metadata\.csv, line 2: neither'):
    scan(tmp_path)


def test_text_that_is_not_utf8_is_refused(tmp_path):
  write_image(tmp_path / 'a.png')
  (tmp_path / 'a.txt').write_bytes(b'caf\xe9')
  with pytest.raises(ValueError, match=r'a\.txt is not UTF-8'):
    scan(tmp_path)


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path):
  write_image(tmp_path / 'a.png')
  write_lines(tmp_path / 'metadata.jsonl', ['{"file_name": "a.png", "text": "x\\ud800"}'])
  assert scan(tmp_path) == [Entry('a.png', 'x?')]


def test_missing_folders_and_folders_without_captions_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'config\.data\.path: there is no folder .*nowhere'):
    scan(tmp_path / 'nowhere')
  write_image(tmp_path / 'a.png')
  with pytest.raises(ValueError, match=r'no captioned images[\s\S]*metadata\.jsonl[\s\S]*cat\.txt'):
    scan(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason='the superuser can read every folder')
def test_an_unreadable_folder_is_refused(tmp_path):
  (tmp_path / 'closed').mkdir(mode=0)
  with pytest.raises(ValueError, match='cannot be read'):
    scan(tmp_path / 'closed')


def test_the_error_names_an_unreadable_subfolder(tmp_path, monkeypatch):
  def walk(root, onerror):
    onerror(PermissionError(13, 'Permission denied', str(root / 'closed')))
    return iter(())

  monkeypatch.setattr('os.walk', walk)
  with pytest.raises(ValueError, match=r'the folder .*closed cannot be read: Permission denied'):
    scan(tmp_path)


def test_floating_point_images_are_skipped(tmp_path):
  Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / 'float.tiff')
  write_image(tmp_path / 'a.png')
  entries = [Entry('a.png', 'x'), Entry('float.tiff', 'y')]
  assert verify(tmp_path, entries) == entries[:1]


def test_missing_images_are_counted_and_named(tmp_path, warnings):
  lines = [{'file_name': f'{i}.png', 'text': 'x'} for i in range(9)]
  write_lines(tmp_path / 'metadata.jsonl', lines)
  with pytest.raises(ValueError, match=r'all 9 images .* are missing: 0\.png, 1\.png.* and 4 more'):
    scan(tmp_path)
  write_image(tmp_path / '8.png')
  assert scan(tmp_path) == [Entry('8.png', 'x')]
  assert '8 listed images are missing' in warnings[0] and '0.png' in warnings[0]


def test_empty_captions_are_skipped(tmp_path, warnings):
  for name in 'ab':
    write_image(tmp_path / f'{name}.png')
    write_lines(tmp_path / f'{name}.txt', [name if name == 'a' else '  '])
  assert scan(tmp_path) == [Entry('a.png', 'a')]
  assert '1 images have an empty caption' in warnings[0] and 'b.png' in warnings[0]


def test_undecodable_images_are_skipped(tmp_path, warnings):
  noise = Image.effect_noise((64, 64), 60)
  for name in ('good.png', 'good.jpg', 'good.webp', 'cut.png', 'cut.jpg', 'cut.webp', 'text.png'):
    noise.convert('RGB').save(tmp_path / name)
  for name in ('cut.png', 'cut.jpg', 'cut.webp'):
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
  (tmp_path / 'text.png').write_text('hello')
  for stem in ('good', 'cut', 'text'):
    write_lines(tmp_path / f'{stem}.txt', ['x'])
  counts = []
  splits = open_folder(tmp_path, validation_fraction=0.0, progress=lambda *c: counts.append(c))
  assert [e.path for e in splits['train'].entries] == ['good.jpg', 'good.png', 'good.webp']
  assert '4 images cannot be decoded' in warnings[0] and 'cut.jpg' in warnings[0]
  assert counts == [(i, 7) for i in range(1, 8)]


def test_a_folder_without_readable_images_is_refused(tmp_path):
  (tmp_path / 'a.png').write_text('hello')
  write_lines(tmp_path / 'a.txt', ['x'])
  with pytest.raises(ValueError, match=r'none of the 1 images .* is readable: a\.png'):
    open_folder(tmp_path, validation_fraction=0.1)


def test_names_are_lower_cased_captions_up_to_the_separator():
  assert folder.name_of('Waving  Hand: Dark Skin Tone', ':') == 'waving hand'
  assert folder.name_of('Waving Hand: Dark', '') == 'waving hand: dark'
  assert folder.name_of('A x B', ' X ') == 'a'


CAPTIONS = st.lists(st.text('abAB :', min_size=1, max_size=6), min_size=1, max_size=40)


@given(CAPTIONS, st.floats(0, 1), st.sampled_from(['', ':']))
def test_images_of_one_name_are_in_one_split(captions, fraction, separator):
  entries = [Entry(f'{i}.png', caption) for i, caption in enumerate(captions)]
  train, validation = split_by_name(entries, fraction, separator)
  assert sorted(train + validation) == sorted(entries)
  names = [{folder.name_of(e.caption, separator) for e in split} for split in (train, validation)]
  assert not names[0] & names[1]
  assert train
  if len(names[0] | names[1]) > 1 and fraction > 0:
    assert validation
  if fraction == 0:
    assert not validation


@given(st.lists(st.integers(0, 10**6), min_size=60, max_size=100, unique=True), st.randoms())
def test_split_does_not_depend_on_order_or_on_other_images(numbers, random):
  entries = [Entry(f'{n}.png', f'caption {n}') for n in numbers]
  validation_of_some = set(split_by_name(entries[:50], 0.5)[1])
  random.shuffle(entries)
  validation_of_all = set(split_by_name(entries, 0.5)[1])
  assert validation_of_some == validation_of_all & {e for e in entries if int(e.path[:-4]) in numbers[:50]}


def test_validation_has_the_requested_fraction_and_never_changes():
  entries = [Entry(f'{i}.png', f'name {i}') for i in range(4000)]
  fraction = len(split_by_name(entries, 0.1)[1]) / 4000
  assert abs(fraction - 0.1) < 4 * np.sqrt(0.09 / 4000)
  # Golden values: if another version split differently, images that a model was trained on could become held-out.
  assert [e.path for e in split_by_name(entries[:20], 0.1)[1]] == ['2.png', '5.png', '8.png']


@pytest.mark.skipif(not (SHARED / 'emoji').is_dir(), reason=f'no emoji images at {SHARED}')
def test_emoji_are_read_and_split_by_name():
  splits = open_folder(SHARED / 'emoji', validation_fraction=0.1, group_separator=':')
  train, validation = splits['train'], splits['validation']
  assert len(train) + len(validation) == 3097
  names = [{e.caption.lower().split(':')[0] for e in source.entries} for source in (train, validation)]
  assert not names[0] & names[1]
  assert 0.05 < len(names[1]) / len(names[0] | names[1]) < 0.15
  assert validation[0]['image'][1:4] == b'PNG'
