import numpy as np
import pytest

from dalle_jax.data import corpus
from dalle_jax.data.batches import Batches


def test_the_reference_of_python_is_cut_at_a_line_and_nothing_is_lost():
  whole = corpus.read_corpus('', '', 0.0)
  assert list(whole) == ['train'] and len(whole['train']) > 50
  parts = corpus.read_corpus('', '', 0.1)
  joined = b'\n'.join(whole['train'])
  assert parts['train'][0] + parts['validation'][0] == joined
  assert parts['train'][0].endswith(b'\n')
  assert len(parts['validation'][0]) == pytest.approx(0.1 * len(joined), rel=0.05)


def test_files_and_directories_are_read_in_order(tmp_path):
  (tmp_path / 'many' / 'deep').mkdir(parents=True)
  (tmp_path / 'many' / 'b.txt').write_bytes(b'B\xff')
  (tmp_path / 'many' / 'deep' / 'c.txt').write_bytes(b'C')
  (tmp_path / 'many' / 'note.md').write_bytes(b'not read')
  (tmp_path / 'a').write_bytes(b'A')
  found = corpus.read_corpus(f'{tmp_path / "a"}, {tmp_path / "many"}', str(tmp_path / 'a'), 0.5)
  assert found == {'train': [b'A', b'B\xff', b'C'], 'validation': [b'A']}


def test_a_text_without_lines_is_cut_where_it_must(tmp_path):
  (tmp_path / 'a').write_bytes(b'x' * 100)
  found = corpus.read_corpus(str(tmp_path / 'a'), '', 0.25)
  assert [len(part[0]) for part in found.values()] == [75, 25]


@pytest.mark.parametrize(
  ('path', 'held_out', 'message'),
  [
    ('nowhere', '', r'config\.data\.path: there is no nowhere'),
    ('a', 'nowhere', r'config\.data\.validation_path: there is no nowhere'),
    ('empty', '', 'holds no text'),
  ],
)
def test_what_cannot_be_read_is_named(tmp_path, monkeypatch, path, held_out, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a').write_bytes(b'A')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=message):
    corpus.read_corpus(path, held_out, 0.1)


def test_fingerprints_tell_texts_and_splits_apart():
  prints = {
    corpus.fingerprint(texts)
    for texts in ({'train': [b'ab']}, {'train': [b'a', b'b']}, {'validation': [b'ab']}, {'train': [b'ac']})
  }
  assert len(prints) == 4


def test_windows_cover_the_text_and_start_anywhere():
  tokens, length = np.arange(23), 5
  windows = corpus.Windows(tokens, length)
  assert len(windows) == 4
  batches = Batches(windows, corpus.Crop(length, random=True), 4, seed=0)
  rows = np.concatenate([next(batches)['tokens'] for _ in range(50)])
  assert rows.shape == (200, length) and rows.dtype == np.int32
  assert (np.diff(rows, axis=1) == 1).all()
  assert set(rows[:, 0]) == set(range(19))
  plain = [corpus.Crop(length, random=False)(windows[i], np.random.default_rng(0))['tokens'] for i in range(4)]
  np.testing.assert_array_equal(np.concatenate(plain), tokens[:20])
  with pytest.raises(ValueError, match=r'4 tokens, fewer than the 5.*config\.model\.length'):
    corpus.Windows(np.arange(4), 5)
