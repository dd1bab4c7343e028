import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_jax.data.text.caption_text import check_characters, check_visible, is_empty, sentences
from dalle_jax.data.text.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(['a red square', 'a blue circle'], 300)
INVISIBLE = [
  '',
  ' \n\t',
  '\u200b',
  '\ufeff\u2060',
  '\0\x01\x7f\x85',
  '\u2028',
  '\xad\ufe0f\u034f',
  '\u3164\u2800',
  '\ufffd',
]


@pytest.mark.parametrize('text', INVISIBLE, ids=ascii)
def test_texts_of_invisible_characters_are_empty(text):
  assert is_empty(text)
  assert not is_empty(text + 'a') and not is_empty('a' + text)
  with pytest.raises(ValueError, match='is empty; give at least one word'):
    check_visible(text)


@pytest.mark.parametrize('text', ['a', '你', '🐶', '.', '\u2581', '\u2585', '\u0301', '\u0600', '\ue000'], ids=ascii)
def test_texts_with_a_visible_character_are_not_empty(text):
  assert not is_empty(text)
  check_visible(text)


def test_every_character_that_normalization_drops_is_invisible():
  import sentencepiece

  normalizer = sentencepiece.SentencePieceNormalizer(rule_name='nmt_nfkc_cf')
  codes = (code for code in range(0x110000) if not 0xD800 <= code < 0xE000)
  dropped = [chr(code) for code in codes if not normalizer.normalize(chr(code)).strip()]
  assert len(dropped) > 50
  # The tokenizer encodes U+2581 as bytes instead of normalizing it.
  assert [character for character in dropped if not is_empty(character)] == ['▁']


def test_control_characters_and_separators_are_invisible():
  for code in range(0x110000):
    if unicodedata.category(chr(code)) in ('Cc', 'Zs', 'Zl', 'Zp'):
      assert is_empty(chr(code)), hex(code)


@given(st.text(st.sampled_from('a ▁▅\u200b\0\ufe0f\u3164é🐶')))
def test_a_text_has_no_tokens_exactly_if_it_is_empty(text):
  assert bool(TOKENIZER.encode(text)) != is_empty(text)


def test_half_a_surrogate_pair_is_named():
  with pytest.raises(ValueError, match=r"holds '\\ud800' at position 2"):
    check_characters('a \ud800')


@given(st.text(st.sampled_from('ab é🐶\u2003'), max_size=200), st.integers(4, 40))
def test_sentences_are_short_and_joined_they_are_the_caption(text, most_bytes):
  parts = list(sentences(text, most_bytes))
  assert ''.join(parts) == text
  assert all(len(part.encode()) <= most_bytes for part in parts)


def test_sentences_end_between_words():
  assert list(sentences('one two  three four', 10)) == ['one two', '  three', ' four']
  assert list(sentences('x' * 25, 10)) == ['x' * 10, 'x' * 10, 'x' * 5]
