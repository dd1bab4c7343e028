"""Output files: whole or not at all."""

import errno
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


def test_two_writers_of_a_file_do_not_disturb_each_other(tmp_path, monkeypatch):
  path, replace = tmp_path / 'a', os.replace

  def replace_after_another_writer(source, target):
    monkeypatch.setattr(files.os, 'replace', replace)
    files.write_whole(path, b'second')
    assert path.read_bytes() == b'second'
    replace(source, target)

  monkeypatch.setattr(files.os, 'replace', replace_after_another_writer)
  files.write_whole(path, b'first')
  assert path.read_bytes() == b'first' and list(tmp_path.iterdir()) == [path]


def test_a_file_replaces_no_directory_and_errors_name_what_the_user_named(tmp_path):
  path = tmp_path / 'a'
  path.mkdir()
  with pytest.raises(OSError, match=rf"Is a directory: '{path}'$"):
    files.write_whole(path, b'x')
  assert list(tmp_path.iterdir()) == [path] and path.is_dir()
  with files.replacing(path) as partial:
    partial.mkdir()
    (partial / 'b').touch()
  assert (path / 'b').exists() and list(tmp_path.iterdir()) == [path]
  with pytest.raises(OSError, match=rf"Not a directory: '{path}/b/c'$"), files.replacing(path / 'b' / 'c') as partial:
    partial.touch()


def test_numbers_that_json_cannot_hold_become_null():
  values = {'a': 1.5, 'b': math.inf, 'c': math.nan, 'd': 'text', 'e': 3}
  assert files.finite_or_null(values) == {'a': 1.5, 'b': None, 'c': None, 'd': 'text', 'e': 3}


def test_a_check_of_an_output_file_leaves_nothing_behind(tmp_path):
  files.check_out(tmp_path / 'new' / 'a.html', overwrite=False)
  assert list((tmp_path / 'new').iterdir()) == []
  with pytest.raises(ValueError, match=r'--out .* cannot be written'):
    files.check_out(tmp_path / 'new', overwrite=True)
  with pytest.raises(ValueError, match='--json is empty; name a file'):
    files.check_out(pathlib.Path(''), overwrite=True, what='--json')
  (tmp_path / 'circle').symlink_to('circle')
  with pytest.raises(ValueError, match=r'--out .*circle cannot be written: '):
    files.check_out(tmp_path / 'circle', overwrite=True)
  (tmp_path / 'a').write_text('')
  with pytest.raises(ValueError, match=r'--out: .*a exists; give another name, or --overwrite'):
    files.check_out(tmp_path / 'a', overwrite=False)
  files.check_out(tmp_path / 'a', overwrite=True)
  files.check_out(pathlib.Path('/dev/null'), overwrite=False)


def test_files_that_are_replaced_must_be_regular_and_differ_from_the_inputs(tmp_path):
  (tmp_path / 'in').touch()
  (tmp_path / 'link').symlink_to(tmp_path / 'in')
  (tmp_path / 'nowhere').symlink_to(tmp_path / 'missing')
  os.mkfifo(tmp_path / 'pipe')
  for name, message in (('nowhere', 'not a regular file'), ('pipe', 'not a regular file'), ('link', '.*in, which')):
    with pytest.raises(ValueError, match=rf'OUT: .*{name} is {message}'):
      files.check_file(tmp_path / name, True, 'OUT', (tmp_path / 'in',))
  with pytest.raises(ValueError, match=r'OUT: .*in exists; give another name, or --overwrite'):
    files.check_file(tmp_path / 'in', False, 'OUT')
  files.check_file(tmp_path / 'in', True, 'OUT')


def test_a_full_disk_is_found_before_any_work(tmp_path, monkeypatch):
  class Full:
    def __init__(self, **options):
      raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(files.tempfile, 'TemporaryFile', Full)
  for check in (lambda: files.make_directory(str(tmp_path)), lambda: files.check_out(tmp_path / 'a', overwrite=False)):
    with pytest.raises(ValueError, match=r'--out .* No space left on device'):
      check()


def test_errors_of_writing_name_the_file(tmp_path, monkeypatch):
  def fail(path, content):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'write_bytes', fail)
  with pytest.raises(OSError, match=r'No space left on device: .*a\.json'):
    files.write_json(tmp_path / 'a.json', {})


@pytest.mark.parametrize(
  ('text', 'printed'),
  [
    ('a\x1b[31mb\r\n\t', r'a\x1b[31mb\r\n\t'),
    ('\u202eabc\u200b\ud800', r'\u202eabc\u200b\ud800'),
    ('ein Käfer, 漢字 🦊', 'ein Käfer, 漢字 🦊'),
    ('x' * 201, 'x' * 133 + '…' + 'x' * 66),
    (b'a\0', r"b'a\x00'"),
  ],
)
def test_texts_from_outside_are_printable_and_short(text, printed):
  assert files.shown(text) == printed


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


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    (b'', 'it is empty'),
    (b' \n', 'it is empty'),
    (b'[]', 'it holds an array'),
    (b'null', 'it holds null'),
    (b'5', 'it holds a number'),
    (b'true', 'it holds true or false'),
    (b'"x"', 'it holds a text'),
    (b'{"a"', 'it is not JSON'),
    (b'\xff\xfe', 'it is not UTF-8 text'),
    (b'{"a": ' + b'9' * 301 + b'}', 'it holds a whole number of 301 characters'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'it holds a whole number of 5,000 characters'),
    (b'[' * 100_000, 'it is not JSON'),
    (b'{"a":' * 101 + b'{}' + b'}' * 101, 'it nests deeper than 100 levels'),
    (b'{"a": NaN}', 'it holds NaN'),
    (b'{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' is repeated"),
  ],
)
def test_json_that_is_no_object_is_refused_by_name_and_not_repeated(tmp_path, content, reason):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with pytest.raises(ValueError) as error:
    files.read_json_object(path, 'Remove it.')
  assert str(error.value).startswith(f'{path} is damaged: {reason}') and str(error.value).endswith('. Remove it.')
  assert len(str(error.value)) < 400


def test_json_objects_are_read_within_bounds(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('{"a": [1, {"b": null}]}')
  assert files.read_json_object(path) == {'a': [1, {'b': None}]}
  assert files.parse_json_object(b'{"a": -Infinity}') == {'a': -math.inf}
  assert math.isnan(files.parse_json_object(b'{"a": NaN}', allow_nan=True)['a'])
  with pytest.raises(ValueError, match='larger than 10 bytes'):
    files.read_json_object(path, max_bytes=10)
  with pytest.raises(ValueError, match='nowhere cannot be read') as error:
    files.read_json_object(tmp_path / 'nowhere')
  assert isinstance(error.value.__cause__, FileNotFoundError)
  os.mkfifo(tmp_path / 'pipe')
  for special in (tmp_path, tmp_path / 'pipe'):
    with pytest.raises(ValueError, match='is not a regular file'):
      files.read_json_object(special)


@pytest.mark.parametrize('path', ['', 'gs://b/x', 'gs:/b/x', 'a\nb', 'a\x7f', '\udcff', 'y' * 4000])
def test_outputs_with_unusable_names_are_refused(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match='--out'):
    files.make_directory(path)
  for check in (lambda out: files.check_out(out, False), lambda out: files.check_file(out, False, '--out')):
    with pytest.raises(ValueError, match='--out'):
      check(pathlib.Path(path))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['a b', 'e[1]', '*', '?', '%s', '-x', 'é', 'x' * 250, 'C:', 'a:b/c', '{0}'])
def test_outputs_with_other_names_are_written(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  assert files.make_directory(f'{name}/d').is_dir()
  out = pathlib.Path(f'{name}/file')
  files.check_out(out, False)
  files.check_file(out, False, '--out')
  files.write_whole(out, b'x')
  with files.replacing(out) as partial:
    partial.write_bytes(b'y')
  assert (tmp_path / name / 'file').read_bytes() == b'y'


def test_arrays_are_stored_only_at_paths_without_patterns(tmp_path):
  for name in ('[', '*', '?', '\\'):
    with pytest.raises(ValueError, match='--out: the path'):
      files.check_array_path(tmp_path / f'a{name}' / 'model', '--out')
  (tmp_path / 'a[1]').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'a[1]')
  with pytest.raises(ValueError, match=r"contains '\['"):
    files.check_array_path(tmp_path / 'link', '--out')
  files.check_array_path(tmp_path / 'a[1]', '--model', reading=True)
  files.check_array_path(tmp_path / 'a b%]', '--out')


@pytest.mark.parametrize(
  ('error', 'path', 'words'),
  [
    (PermissionError(13, 'Permission denied', '/a'), '/a', 'Permission denied'),
    (PermissionError(13, 'Permission denied', '/a'), '/a/b', 'Permission denied (/a)'),
    (FileExistsError(17, 'File exists', '/a'), '/a', 'a file of this name exists'),
    (OSError(40, 'Too many levels', '/a'), None, 'its symbolic links lead in a circle'),
    (OSError('it is strange.'), None, 'it is strange'),
    (OSError(), None, 'for an unknown reason'),
    (ValueError('embedded null byte'), 'a', 'embedded null byte'),
  ],
)
def test_reasons_are_words(error, path, words):
  assert files.reason(error, path) == words
