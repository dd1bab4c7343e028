"""The check of pictures before training, and what it remembers."""

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.pictures import checked_pictures, gate, image
from dalle_jax.data.pictures.checked_pictures import CheckedPictures, Verdict
from dalle_jax.data.pictures.stores import FolderStore, Stamp

LIMIT = 10_000


def make_folder(root, count=12):
  """Pictures, some of them damaged, all last changed a minute ago. Returns their paths."""
  root.mkdir(parents=True, exist_ok=True)
  paths = []
  for number in range(count):
    path = root / f'{number}.png'
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)
    if number % 4 == 3:
      path.write_bytes(path.read_bytes()[:60])
    paths.append(path.name)
  age(root)
  return paths


def age(root):
  for path in root.iterdir():
    os.utime(path, (time.time() - 60, time.time() - 60))


class Check:
  """Runs the check, and counts the pictures that it decodes."""

  def __init__(self, root, file, max_pixels=LIMIT):
    self.root, self.file, self.max_pixels = root, file, max_pixels

  def __call__(self, paths):
    counts = []
    checked = CheckedPictures(self.file, self.max_pixels)
    verdicts = gate.check(
      FolderStore(self.root), paths, checked, self.max_pixels, lambda done, total: counts.append((done, total))
    )
    assert counts == [(number, len(counts)) for number in range(1, len(counts) + 1)]
    return verdicts, len(counts)


@pytest.fixture
def check(tmp_path):
  return Check(tmp_path / 'pictures', tmp_path / 'memory' / 'checked.jsonl')


def test_the_check_accepts_what_training_decodes_and_nothing_else(check):
  paths = make_folder(check.root)
  wide = Image.new('I', (4, 4), 10**6)
  wide.save(check.root / 'wide.tiff')
  Image.new('RGB', (101, 100)).save(check.root / 'large.png')
  verdicts, _ = check([*paths, 'wide.tiff', 'large.png', 'missing.png'])
  for path, verdict in verdicts.items():
    try:
      image.decode((check.root / path).read_bytes(), LIMIT)
      readable = True
    except (ValueError, OSError):
      readable = False
    assert (verdict.problem == '') == readable, path
  readable = [path for path, verdict in verdicts.items() if not verdict.problem]
  assert readable == [path for path in paths if path not in ('3.png', '7.png', '11.png')]
  assert 'limit of 10,000' in verdicts['large.png'].problem
  assert verdicts['missing.png'].problem == 'it cannot be read: No such file or directory'


def test_only_new_and_changed_pictures_are_decoded_again(check):
  paths = make_folder(check.root)
  first, num_decoded = check(paths)
  assert num_decoded == 12
  assert check(paths) == (first, 0)
  Image.new('RGB', (5, 5)).save(check.root / '3.png')  # was damaged
  Image.new('RGB', (5, 5)).save(check.root / 'new.png')
  age(check.root)
  os.utime(check.root / '5.png', (1, 1))
  second, num_decoded = check([*paths, 'new.png'])
  assert num_decoded == 12 + 1  # `age` gave all of them another time
  assert second['3.png'].problem == '' and second['5.png'] == first['5.png']
  os.utime(check.root / '5.png', (2, 2))
  assert check([*paths, 'new.png']) == (second, 1)


def test_a_picture_that_changed_just_now_is_not_remembered(check):
  paths = make_folder(check.root, 2)
  os.utime(check.root / '0.png')
  assert check(paths)[1] == 2
  assert check(paths)[1] == 1


def test_another_limit_or_decoder_makes_the_memory_void(check, monkeypatch):
  paths = make_folder(check.root)
  check(paths)
  assert Check(check.root, check.file, max_pixels=15)(paths)[0]['0.png'].problem
  assert check(paths)[1] == 12
  monkeypatch.setattr(checked_pictures, '_decoder', lambda: 'another')
  assert check(paths)[1] == 12
  assert check(paths)[1] == 0


def test_a_damaged_memory_never_changes_a_verdict(check):
  paths = make_folder(check.root)
  verdicts, _ = check(paths)
  whole = check.file.read_bytes()
  generator = random.Random(0)
  for _ in range(60):
    damaged = bytearray(whole)
    kind = generator.randrange(4)
    position = generator.randrange(len(damaged))
    if kind == 0:
      damaged[position] ^= 1 << generator.randrange(8)
    elif kind == 1:
      del damaged[position:]
    elif kind == 2:
      damaged[position:position] = generator.randbytes(20)
    else:
      damaged[position : position + 50] = b''
    check.file.write_bytes(damaged)
    assert check(paths)[0] == verdicts
    assert check(paths) == (verdicts, 0)  # repaired
  for text in (b'', b'\n', b'null\n', b'\xff' * 99, whole.replace(b'"', b"'")):
    check.file.write_bytes(text)
    assert check(paths)[0] == verdicts


def test_without_a_place_to_write_the_check_works_every_time(check, tmp_path):
  paths = make_folder(check.root)
  (tmp_path / 'file').write_text('')
  unwritable = Check(check.root, tmp_path / 'file' / 'checked.jsonl')
  assert unwritable(paths)[1] == unwritable(paths)[1] == 12
  (tmp_path / 'directory').mkdir()
  assert Check(check.root, tmp_path / 'directory')(paths)[1] == 12


def test_an_interrupted_check_keeps_what_it_did(check, monkeypatch):
  paths = make_folder(check.root)
  examine = gate.examine

  def interrupted(store, path, max_pixels):
    if path == '8.png':
      raise KeyboardInterrupt
    return examine(store, path, max_pixels)

  monkeypatch.setattr(gate, 'examine', interrupted)
  with pytest.raises(KeyboardInterrupt):
    check(paths)
  monkeypatch.setattr(gate, 'examine', examine)
  assert check(paths)[1] == 4


def test_lines_appended_by_several_processes_are_all_read(tmp_path):
  file, stamp = tmp_path / 'checked.jsonl', Stamp(5, 5)
  memories = [CheckedPictures(file, LIMIT) for _ in range(3)]
  for name, memory in zip('abc', memories, strict=True):
    memory.add(name, stamp, Verdict('00'))
    memory.flush()
    memory = CheckedPictures(file, LIMIT)
    memory.add(name + name, stamp, Verdict('11', 'problem', ('note',)))
    memory.flush()
  last = CheckedPictures(file, LIMIT)
  assert last.get('c', stamp) == Verdict('00') and last.get('cc', stamp) == Verdict('11', 'problem', ('note',))
  assert last.get('c', Stamp(5, 6)) is None and last.get('c', Stamp(6, 5)) is None


def test_the_file_of_a_folder_does_not_depend_on_how_its_path_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'link').symlink_to(tmp_path / 'a')
  names = {checked_pictures.file_for(Path(path), tmp_path) for path in ('a', './a/', tmp_path / 'a', 'link')}
  assert len(names) == 1
  assert checked_pictures.file_for(Path('b'), tmp_path) not in names


def test_a_file_too_large_for_any_picture_is_not_read(tmp_path):
  with (tmp_path / 'a.png').open('wb') as file:
    file.truncate(2**40)
  stamp, verdict = gate.examine(FolderStore(tmp_path), 'a.png')
  assert stamp is None and 'the file has 1,099,511,627,776 bytes' in verdict.problem
