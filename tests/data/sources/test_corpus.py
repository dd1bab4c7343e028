import numpy as np
import pytest

from dalle_jax.data.account import Account
from dalle_jax.data.batches import Batches
from dalle_jax.data.sources import corpus


def test_python_help_is_split_at_the_start_of_a_line_and_nothing_is_lost():
  unsplit = corpus.read_corpus('', '', 0.0)
  assert list(unsplit) == ['train'] and len(unsplit['train']) > 50
  splits = corpus.read_corpus('', '', 0.1)
  joined = b'\n'.join(unsplit['train'])
  assert splits['train'][0] + splits['validation'][0] == joined
  assert splits['train'][0].endswith(b'\n')
  assert len(splits['validation'][0]) == pytest.approx(0.1 * len(joined), rel=0.05)


def test_files_and_directories_are_read_in_order(tmp_path):
  (tmp_path / 'many' / 'deep').mkdir(parents=True)
  (tmp_path / 'many' / 'b.txt').write_bytes(b'B\xff')
  (tmp_path / 'many' / 'deep' / 'c.txt').write_bytes(b'C')
  (tmp_path / 'many' / 'note.md').write_bytes(b'not read')
  (tmp_path / 'a').write_bytes(b'A')
  texts = corpus.read_corpus(f'{tmp_path / "a"}, {tmp_path / "many"}', str(tmp_path / 'a'), 0.5)
  assert texts == {'train': [b'A', b'B\xff', b'C'], 'validation': [b'A']}


def test_files_that_are_not_read_are_counted(tmp_path):
  root = tmp_path / 'root'
  (root / '.hidden').mkdir(parents=True)
  (root / 'sub').mkdir()
  for name in ('a.txt', 'sub/B.TXT', 'sub/empty.txt', 'c.md', '.hidden/d.txt', '../outside.txt'):
    (root / name).write_bytes(b'' if 'empty' in name else name.encode())
  (root / 'out.txt').symlink_to('../outside.txt')
  (root / 'again').symlink_to('sub')
  account = Account('texts')
  texts = corpus.read_corpus(f'{root}, {root}/a.txt', '', 0.0, account)
  assert texts == {'train': [b'a.txt', b'sub/B.TXT', b'a.txt']}
  assert [line.replace(f'{root}/', '') for line in account.lines()] == [
    '5 texts found, 3 used, 2 left out',
    'left out 1: a link that leads out of the folder; only files inside it are read (out.txt)',
    'left out 1: it is empty (empty.txt)',
    'note 1: hidden, and therefore not read (.hidden)',
    'note 1: a link to a folder inside this folder, which is searched at its own place (again)',
    'note 1: not a .txt file (c.md)',
    'note 1: read more than once, because several of the given paths lead to it (a.txt)',
  ]


def test_a_text_without_line_breaks_is_split_at_the_exact_fraction(tmp_path):
  (tmp_path / 'a').write_bytes(b'x' * 100)
  texts = corpus.read_corpus(str(tmp_path / 'a'), '', 0.25)
  assert [len(split_texts[0]) for split_texts in texts.values()] == [75, 25]


@pytest.mark.parametrize(
  ('path', 'held_out', 'message'),
  [
    ('nowhere', '', r'config\.data\.path: there is no nowhere'),
    ('a', 'nowhere', r'config\.data\.validation_path: there is no nowhere'),
    ('empty', '', r'holds no text[\s\S]*0 texts found'),
    ('/dev/zero', '', r'/dev/zero is neither a file nor a directory'),
    ('a,', '', 'there is no name between two commas'),
  ],
)
def test_errors_name_the_key_and_the_path(tmp_path, monkeypatch, path, held_out, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a').write_bytes(b'A')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=message):
    corpus.read_corpus(path, held_out, 0.1)


def test_fingerprints_differ_if_texts_or_splits_differ():
  fingerprints = {
    corpus.fingerprint(texts)
    for texts in ({'train': [b'ab']}, {'train': [b'a', b'b']}, {'validation': [b'ab']}, {'train': [b'ac']})
  }
  assert len(fingerprints) == 4


def test_random_crops_start_at_every_token_and_plain_crops_cover_the_text():
  tokens, length = np.arange(23), 5
  windows = corpus.Windows(tokens, length)
  assert len(windows) == 4
  batches = Batches(windows, corpus.Crop(length, random=True), 4, seed=0)
  rows = np.concatenate([next(batches)['tokens'] for _ in range(50)])
  assert rows.shape == (200, length) and rows.dtype == np.int32
  assert (np.diff(rows, axis=1) == 1).all()
  assert set(rows[:, 0]) == set(range(19))
  plain_crops = [corpus.Crop(length, random=False)(windows[i], np.random.default_rng(0))['tokens'] for i in range(4)]
  np.testing.assert_array_equal(np.concatenate(plain_crops), tokens[:20])
  with pytest.raises(ValueError, match=r'4 tokens, fewer than the 5.*config\.model\.length'):
    corpus.Windows(np.arange(4), 5)
