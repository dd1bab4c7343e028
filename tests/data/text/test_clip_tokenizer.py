"""Tests of CLIP's tokenizer with merges learnt here, because the project does not include the published vocabulary."""

import collections
import gzip
import itertools
import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_jax.data.text import clip_tokenizer
from dalle_jax.data.text.caption_text import is_empty
from dalle_jax.data.text.clip_tokenizer import ClipTokenizer

CORPUS = ['red', 'square', 'squares', 'a', 'above', 'blue', 'dog', 'don', "'t", 'aaaaa', 'é', '1'] * 2 + ['circle'] * 5


def initial_pieces(word):
  """A word as one piece per byte, the last one with the end-of-word mark."""
  characters = [clip_tokenizer._byte_characters()[byte] for byte in word.encode()]
  return [*characters[:-1], characters[-1] + '</w>']


def merge_everywhere(pieces, pair):
  merged = []
  for piece in pieces:
    if merged and (merged[-1], piece) == pair:
      merged[-1] += piece
    else:
      merged.append(piece)
  return merged


def learn(words):
  """Learns merges by definition: repeatedly merges the most frequent pair, until each word is one piece."""
  words, merges = [initial_pieces(word) for word in words], []
  while pairs := collections.Counter(pair for word in words for pair in itertools.pairwise(word)):
    merges.append(max(sorted(pairs), key=pairs.get))
    words = [merge_everywhere(word, merges[-1]) for word in words]
  return [' '.join(pair) for pair in merges]


MERGES = learn(CORPUS)
TOKENIZER = ClipTokenizer(MERGES)


def test_ids_are_bytes_then_word_final_bytes_then_merges_then_start_and_end():
  assert TOKENIZER.vocab_size == 512 + 29 + 2
  assert (TOKENIZER.start_id, TOKENIZER.end_id) == (541, 542)
  assert TOKENIZER.encode('!') == [256]  # the first printable byte, at the end of a word
  assert TOKENIZER.encode('!~') == [0, 256 + ord('~') - ord('!')]
  assert TOKENIZER.encode('ё') == [ord('Ñ') - ord('®') + 94 + 12, 256 + 188 + 33 + 0x91 - 0x7F]  # bytes D1 91
  assert TOKENIZER.encode('circle') == [512 + MERGES.index('circl e</w>')]


@given(st.text('abcdelqrsu', min_size=1, max_size=30))
def test_merging_follows_the_definition(word):
  pieces = initial_pieces(word)
  while ranks := [MERGES.index(' '.join(pair)) for pair in itertools.pairwise(pieces) if ' '.join(pair) in MERGES]:
    pieces = merge_everywhere(pieces, tuple(MERGES[min(ranks)].split()))
  assert [TOKENIZER._pieces[i] for i in TOKENIZER.encode(word)] == pieces


def test_only_listed_pairs_merge_even_if_their_concatenation_is_a_piece():
  tokenizer = ClipTokenizer(['b c', 'a b', 'ab c</w>'])  # the pair 'a bc' is not listed
  assert len(tokenizer.encode('abc')) == 1
  assert [tokenizer._pieces[i] for i in tokenizer.encode('abcd')] == ['a', 'bc', 'd</w>']


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('  A RED \n\t square ', 'a red square'),
    ("Don't! they'RE", "don 't ! they 're"),
    ('3.14 x2', '3 . 1 4 x 2'),
    ('a &amp;amp; b &lt;3', 'a & b < 3'),
    ('<i> &amp;amp; b', '< i > & b'),  # ftfy leaves entities beside tags alone
    ('a dog’s “toy”', 'a dog \'s " toy "'),  # curly quotation marks become straight
    ('schÃ¶n', 'schön'),  # UTF-8 that was decoded as Latin-1
    ('naïve 你好 🐶!!', 'naïve 你好 🐶!!'),
    ('<|endoftext|> a', '<| endoftext |> a'),  # not the end token
  ],
)
def test_texts_are_cleaned_and_split_into_words(text, words):
  assert TOKENIZER.decode(TOKENIZER.encode(text)) == words
  assert max(TOKENIZER.encode(text)) < TOKENIZER.start_id


@given(st.text(st.characters(exclude_categories=['Cs']), max_size=40))
def test_decoding_returns_the_cleaned_text_up_to_spaces(text):
  ids = TOKENIZER.encode(text)
  decoded, cleaned = TOKENIZER.decode(ids), clip_tokenizer._cleaned(text)
  assert ''.join(decoded.split()) == ('' if is_empty(cleaned) else ''.join(cleaned.split()))


def test_encode_padded_adds_start_end_and_padding():
  ids = TOKENIZER.encode('a red square')
  padded = TOKENIZER.encode_padded('a red square', len(ids) + 4)
  assert padded.dtype == np.int32
  np.testing.assert_array_equal(padded, [541, *ids, 542, 0, 0])
  assert TOKENIZER.decode(padded) == 'a red square'
  np.testing.assert_array_equal(TOKENIZER.encode_padded('a red square', 4, truncate=True), [541, *ids[:2], 542])
  assert len(TOKENIZER.encode_padded('a')) == 77
  with pytest.raises(ValueError, match=r'has 3 tokens.*at most 2.*--truncate'):
    TOKENIZER.encode_padded('a red circle', 4)
  with pytest.raises(ValueError, match='empty'):
    TOKENIZER.encode_padded(' \n', 4)


def test_decode_refuses_ids_outside_the_vocabulary():
  with pytest.raises(ValueError, match='must lie in'):
    TOKENIZER.decode([543])


def test_all_published_file_formats_can_be_loaded(tmp_path):
  TOKENIZER.save(tmp_path / 'tokenizer.model')
  lines = '\n'.join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *MERGES])
  (tmp_path / 'vocab.txt.gz').write_bytes(gzip.compress(lines.encode()))
  for name, merges in (('text.json', MERGES), ('pairs.json', [pair.split(' ') for pair in MERGES])):
    (tmp_path / name).write_text(json.dumps({'model': {'merges': merges}}))
  for path in tmp_path.iterdir():
    assert ClipTokenizer.load(path).pieces_hash == TOKENIZER.pieces_hash
  assert pickle.loads(pickle.dumps(TOKENIZER)).encode('a red dog') == TOKENIZER.encode('a red dog')


def test_only_the_first_merges_of_a_longer_list_are_used(tmp_path):
  characters = list(clip_tokenizer._byte_characters().values())
  pairs = [f'{a} {b}' for a in characters for b in characters][:50_000]
  (tmp_path / 'vocab.txt').write_text('\n'.join(['#version: 0.2', *pairs]), encoding='utf-8')
  assert ClipTokenizer.load(tmp_path / 'vocab.txt').vocab_size == 49_408


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', "begins with ''"),
    (gzip.compress(b'#version: 0.2\n' + b'a b\n' * 99, mtime=0)[:-12], 'Cannot load'),
    (b'#version: 0.2\na b\nab\n', "merge 2 is 'ab'"),
    (b'#version: 0.2\na b\nabc d\n', "merge 2 is 'abc d'"),
    (b'#version: 0.2\na b\na b\n', "merge 2 is 'a b'"),
    (b'{"model": {}}', 'merges'),
    (b'{"model"', 'Cannot load'),
    (b'{"model": {"merges": [3]}}', 'Cannot load'),
    (b'\xff\xfe', 'Cannot load'),
  ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
  path = tmp_path / 'tokenizer.model'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r'Cannot load the tokenizer .*tokenizer\.model') as error:
    ClipTokenizer.load(path)
  assert message in str(error.value)


def test_a_small_file_cannot_ask_for_much_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(clip_tokenizer, 'MAX_UNPACKED', 1000)
  path = tmp_path / 'vocab.txt.gz'
  merges = b'#version: 0.2\n' + b'a b\n' * 300
  for content in (merges, gzip.compress(merges)):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'more than 1,000 bytes, after decompression'):
      ClipTokenizer.load(path)


def test_errors_name_a_missing_file_or_package(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r'Cannot load the tokenizer .*nowhere'):
    ClipTokenizer.load(tmp_path / 'nowhere')
  monkeypatch.setitem(sys.modules, 'ftfy', None)
  with pytest.raises(ValueError, match=r"needs the package ftfy: pip install 'dalle_jax\[clip\]'"):
    TOKENIZER.encode('a')


@pytest.mark.parametrize('text', ['\u200b', '\0', '\ufe0f\u2800', '&#8203;', '&amp;nbsp;'], ids=ascii)
def test_texts_of_invisible_characters_are_empty(text):
  assert TOKENIZER.encode(text) == []
  with pytest.raises(ValueError, match='is empty; give at least one word'):
    TOKENIZER.encode_padded(text, 20)


def test_half_a_surrogate_pair_is_refused():
  with pytest.raises(ValueError, match='half of a surrogate pair'):
    TOKENIZER.encode_padded('a \ud83d dog', 20)


def test_sentencepieces_symbols_are_ordinary_characters():
  assert TOKENIZER.decode(TOKENIZER.encode('red▁square ▅')) == 'red ▁ square ▅'
