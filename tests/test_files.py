"""Output files: whole or not at all."""

import json
import math
import os
import pathlib

import pytest

from dalle_jax import files


def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
  path = tmp_path / 'new' / 'a.json'
  files.write_json(path, {'a': 1})

  def fail(source, target):
    raise OSError('disk full')

  monkeypatch.setattr(files.os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    files.write_json(path, {'a': 2})
  assert json.loads(path.read_text()) == {'a': 1} and list(path.parent.iterdir()) == [path]


def test_replacing_leaves_the_old_file_if_the_writer_fails(tmp_path):
  path = tmp_path / 'a'
  path.write_text('old')
  with pytest.raises(RuntimeError), files.replacing(path) as partial:
    partial.write_text('half')
    raise RuntimeError
  assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
  with files.replacing(path) as partial:
    partial.write_text('new')
  assert path.read_text() == 'new' and list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_cannot_hold_become_null():
  values = {'a': 1.5, 'b': math.inf, 'c': math.nan, 'd': 'text', 'e': 3}
  assert files.finite_or_null(values) == {'a': 1.5, 'b': None, 'c': None, 'd': 'text', 'e': 3}


def test_a_check_of_an_output_file_leaves_nothing_behind(tmp_path):
  files.check_out(tmp_path / 'new' / 'a.html')
  assert list((tmp_path / 'new').iterdir()) == []
  with pytest.raises(ValueError, match=r'--out .* cannot be written'):
    files.check_out(tmp_path / 'new')


def test_links_stay_and_pipes_are_written_to(tmp_path):
  target, link, pipe = tmp_path / 'target', tmp_path / 'link', tmp_path / 'pipe'
  target.write_text('old')
  link.symlink_to(target)
  files.write_whole(link, b'new')
  assert link.is_symlink() and target.read_text() == 'new'
  os.mkfifo(pipe)
  reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
  files.write_whole(pipe, b'text')
  assert os.read(reader, 10) == b'text' and pipe.is_fifo()
  os.close(reader)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('größer 漢字 🦊 a b', 'größer 漢字 🦊 a b'),
    ('\x1b[31m\r\n\t\0\x7f\x9b', r'\x1b[31m\r\n\t\x00\x7f\x9b'),
    ('a\u202eb\u200b\u2028\u2066\ufeff', r'a\u202eb\u200b\u2028\u2066\ufeff'),
    ('\udcff\ud800\U000e0001', r'\udcff\ud800\U000e0001'),
    (pathlib.Path('a\nb'), r'a\nb'),
    (ValueError('x\x1b'), r'x\x1b'),
    ('C:\\dir', 'C:\\dir'),
  ],
)
def test_foreign_text_is_shown_without_control_characters(text, expected):
  assert files.shown(text) == expected


@pytest.mark.parametrize('char', ['x', '\x1b', '\U000e0001'])
def test_long_foreign_text_is_cut_in_the_middle(char):
  text = files.shown('start' + char * 10**7 + 'the end')
  assert len(text) == 200 and text.startswith('start') and text.endswith('the end') and '…' in text
  for most in (3, 4, 10, 50):
    assert len(files.shown(char * 1000, most)) == most
  assert files.shown('x' * 200) == 'x' * 200
