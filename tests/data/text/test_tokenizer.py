import collections
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_jax.data.text import tokenizer as tokenizer_lib
from dalle_jax.data.text.tokenizer import Tokenizer, train_tokenizer

CAPTIONS = ['a red square', 'a blue circle above a red square', 'Two Dogs on a mat', 'naïve café 你好'] * 3
TOKENIZER = train_tokenizer(CAPTIONS, 400)
UNICODE = st.text(st.characters(exclude_categories=['Cs']), max_size=60)


def test_a_small_corpus_gives_a_smaller_vocabulary_than_requested():
  assert 256 < train_tokenizer(CAPTIONS, 16_384).vocab_size < 500


def test_frequent_words_become_single_pieces():
  assert len(TOKENIZER.encode('a red square')) == 3
  assert len(TOKENIZER.encode('zq')) > 2


def test_encoding_lower_cases_and_normalizes():
  assert TOKENIZER.encode('A  ＲＥＤ square ') == TOKENIZER.encode('a red square')
  assert TOKENIZER.decode(TOKENIZER.encode('A RED Square')) == 'a red square'


@given(st.lists(st.text('abcDEF xyz,.:', min_size=1), min_size=1))
def test_round_trip_of_plain_text(words):
  text = ' '.join(words)
  assert TOKENIZER.decode(TOKENIZER.encode(text)) == ' '.join(text.lower().split())


@given(UNICODE)
def test_any_text_can_be_encoded_and_decoded_text_stays_the_same(text):
  ids = TOKENIZER.encode(text)
  assert all(1 < i < TOKENIZER.vocab_size for i in ids)  # neither padding nor unknown
  decoded = TOKENIZER.decode(ids)
  assert TOKENIZER.decode(TOKENIZER.encode(decoded)) == decoded


def test_emoji_are_encoded_as_bytes():
  assert TOKENIZER.decode(TOKENIZER.encode('a 🐶')) == 'a 🐶'


def test_names_of_special_pieces_are_encoded_as_ordinary_text():
  assert TOKENIZER.decode(TOKENIZER.encode('<pad><unk><0x41>')) == '<pad><unk><0x41>'


def test_encode_padded_pads_and_truncates():
  ids = TOKENIZER.encode('a red square')
  padded = TOKENIZER.encode_padded('a red square', 5)
  assert padded.dtype == np.int32
  np.testing.assert_array_equal(padded, [*ids, 0, 0])
  assert TOKENIZER.decode(padded) == 'a red square'
  np.testing.assert_array_equal(TOKENIZER.encode_padded('a red square', 3), ids)
  np.testing.assert_array_equal(TOKENIZER.encode_padded('a red square', 2, truncate=True), ids[:2])


def test_encode_padded_refuses_long_and_empty_prompts():
  with pytest.raises(ValueError, match=r'has 3 tokens.*at most 2.*--truncate'):
    TOKENIZER.encode_padded('a red square', 2)
  for empty in ('', '  \n', '\u200b', '\0', '\ufe0f\u2800'):
    with pytest.raises(ValueError, match='empty'):
      TOKENIZER.encode_padded(empty, 5)


@pytest.mark.parametrize('text', ['▁', '▅', 'a▁b', 'a ▁ b', '▁a▁▁ b▅▁', 'red▁square', '\U000f0000▁'])
def test_sentencepieces_own_symbols_survive(text):
  ids = TOKENIZER.encode(text)
  assert TOKENIZER.decode(ids) == text
  assert TOKENIZER.encode_with_dropout(text, 0.0, np.random.default_rng(0)) == ids
  assert TOKENIZER.decode(TOKENIZER.encode_with_dropout(text, 1.0, np.random.default_rng(0))) == text
  assert set('▁▅') & set(text) <= set(TOKENIZER.unseen(text))
  assert ids != TOKENIZER.encode(text.replace('▁', ' ').replace('▅', ' '))


def test_half_a_surrogate_pair_is_refused():
  with pytest.raises(ValueError, match='half of a surrogate pair'):
    TOKENIZER.encode('a \ud83d dog')


@pytest.mark.parametrize('template', [
  'zebra {} zebra', '{} zebra zebra zebra', 'zebra▁{}zebra', 'zebra ▅ {} zebra', 'zebra \0 {} zebra'
])  # fmt: skip
@pytest.mark.parametrize('repeats', [1, 1_300])
def test_captions_are_learnt_from_whatever_their_length_and_characters(template, repeats):
  captions = [template.format('zebra ' * repeats)] * 4 + ['a red square']
  assert len(train_tokenizer(captions, 400).encode('zebra')) == 1


def test_words_longer_than_the_trainers_counters_are_learnt_from():
  captions = ['zebra ' + '你' * 70_000, 'zebra ' * 20_000]
  assert len(train_tokenizer(captions, 400).encode('zebra')) == 1


def test_decode_refuses_ids_outside_the_vocabulary():
  with pytest.raises(ValueError, match='must lie in'):
    TOKENIZER.decode([TOKENIZER.vocab_size])
  with pytest.raises(ValueError, match='must lie in'):
    TOKENIZER.decode([-1])


def test_training_is_deterministic():
  retrained = train_tokenizer(iter(CAPTIONS), 400)
  assert retrained.pieces_hash == TOKENIZER.pieces_hash
  assert train_tokenizer([*CAPTIONS, 'zebra zebra'], 400).pieces_hash != TOKENIZER.pieces_hash


def test_saving_and_pickling_keep_the_encoding(tmp_path):
  TOKENIZER.save(tmp_path / 'tokenizer.model')
  for copy in (Tokenizer.load(tmp_path / 'tokenizer.model'), pickle.loads(pickle.dumps(TOKENIZER))):
    assert copy.pieces_hash == TOKENIZER.pieces_hash
    assert copy.encode('a Red dog') == TOKENIZER.encode('a Red dog')


def test_load_refuses_damaged_files(tmp_path):
  path = tmp_path / 'tokenizer.model'
  with pytest.raises(ValueError, match=r'Cannot load the tokenizer .*tokenizer\.model'):
    Tokenizer.load(path)
  TOKENIZER.save(path)
  data = path.read_bytes()
  # Try every prefix up to the end of the pieces, because some of these prefixes are valid protocol buffers.
  for length in [*range(10_000), len(data) - 1]:
    with pytest.raises(ValueError, match='damaged'):
      Tokenizer(data[:length])
  path.write_bytes(b'not a model')
  with pytest.raises(ValueError, match='damaged'):
    Tokenizer.load(path)


def test_a_vocabulary_size_that_is_too_small_is_refused():
  with pytest.raises(ValueError, match=r'config\.tokenizer\.vocab_size is 269; it must be at least 270'):
    train_tokenizer(CAPTIONS, 269)
  many_characters = [chr(0x4E00 + i) * 50 for i in range(300)]
  with pytest.raises(ValueError, match=r'config\.tokenizer\.vocab_size=300'):
    train_tokenizer(many_characters, 300)
  assert tokenizer_lib.MIN_VOCAB_SIZE == 270


@pytest.mark.parametrize('captions', [[], ['', '  ']])
def test_training_without_text_is_refused(captions):
  with pytest.raises(ValueError, match='captions'):
    train_tokenizer(captions, 300)


@given(UNICODE)
def test_without_dropout_the_tokens_equal_those_of_sentencepiece(text):
  assert TOKENIZER.encode_with_dropout(text, 0.0, np.random.default_rng(0)) == TOKENIZER.encode(text)


@given(UNICODE, st.floats(0, 1), st.integers(0, 2**31))
def test_dropout_changes_the_tokens_and_not_the_text(text, dropout, seed):
  ids = TOKENIZER.encode_with_dropout(text, dropout, np.random.default_rng(seed))
  assert TOKENIZER.decode(ids) == TOKENIZER.decode(TOKENIZER.encode(text))
  assert ids == TOKENIZER.encode_with_dropout(text, dropout, np.random.default_rng(seed))


def test_a_dropout_of_1_leaves_single_characters():
  ids = TOKENIZER.encode_with_dropout('a red', 1.0, np.random.default_rng(0))
  assert len(ids) == len('▁a▁red')


def test_with_dropout_the_mean_number_of_tokens_equals_that_of_sentencepiece():
  text, rng = 'a blue circle above a red square', np.random.default_rng(0)
  lengths = [len(TOKENIZER.encode_with_dropout(text, 0.3, rng)) for _ in range(2000)]
  reference = [
    len(TOKENIZER._processor.encode(text, enable_sampling=True, alpha=0.3, nbest_size=-1)) for _ in range(2000)
  ]
  assert np.mean(lengths) > len(TOKENIZER.encode(text)) + 2
  standard_error = np.hypot(np.std(lengths), np.std(reference)) / np.sqrt(2000)
  assert abs(np.mean(lengths) - np.mean(reference)) < 5 * standard_error


def test_with_dropout_each_segmentation_is_as_frequent_as_with_sentencepiece():
  text, count, rng = 'square', 3000, np.random.default_rng(0)
  counts = collections.Counter(tuple(TOKENIZER.encode_with_dropout(text, 0.4, rng)) for _ in range(count))
  reference = collections.Counter(
    tuple(TOKENIZER._processor.encode(text, enable_sampling=True, alpha=0.4, nbest_size=-1)) for _ in range(count)
  )
  assert len(counts) > 6
  for ids in counts | reference:
    frequency = (counts[ids] + reference[ids]) / (2 * count)
    standard_error = np.sqrt(2 * frequency * (1 - frequency) / count)
    assert abs(counts[ids] - reference[ids]) / count < 5 * standard_error, ids


def test_merging_agrees_with_a_calculation_by_hand():
  ranks = {'ab': 1, 'bc': 0, 'abc': 2, 'cc': 3}
  rng = np.random.default_rng(0)
  assert tokenizer_lib.merge(list('abccabb'), ranks, 0.0, rng) == ['abc', 'c', 'ab', 'b']  # bc before ab
  assert tokenizer_lib.merge([], ranks, 0.5, rng) == []


def test_words_returns_the_positions_of_each_words_tokens():
  ids = TOKENIZER.encode_padded('a zq 🐶 red', 20)
  words = TOKENIZER.words(ids)
  assert [word for word, _ in words] == ['a', 'zq', '🐶', 'red']
  assert [position for _, positions in words for position in positions] == list(range(np.count_nonzero(ids)))
  assert len(words[0][1]) == 1 and min(len(positions) for _, positions in words[1:3]) > 1


@given(UNICODE)
def test_words_cover_the_text_and_all_positions(text):
  ids = TOKENIZER.encode(text)
  words = TOKENIZER.words(ids)
  assert ' '.join(word for word, _ in words).split() == TOKENIZER.decode(ids).split()
  assert [position for _, positions in words for position in positions] == list(range(len(ids)))
