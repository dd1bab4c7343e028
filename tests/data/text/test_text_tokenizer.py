import pickle
from pydoc_data import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.data.text import text_tokenizer
from dalle_jax.data.text.text_tokenizer import ByteTokenizer, PieceTokenizer, train_pieces

TEXT = topics.topics['for'].encode() * 3
PIECES = train_pieces([TEXT], 400)
TOKENIZERS = pytest.mark.parametrize('tokenizer', [ByteTokenizer(), PIECES], ids=['bytes', 'pieces'])
UNUSUAL = [
  b'', b'\0', b'a\0b', b'\xff\xfe\x80', b'  two  spaces ', b'\r\n\t\n', '\u2581 \u2581'.encode(), b'<unk><0x41>',
  'naïve 你好 🐶 e\u0301 \u200d \ufeff'.encode(), '\ud800'.encode('utf-8', 'surrogatepass'), bytes(range(256)),
]  # fmt: skip


@TOKENIZERS
@pytest.mark.parametrize('text', UNUSUAL, ids=repr)
def test_unusual_text_is_encoded_without_loss(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
  assert tokenizer.lengths(ids).sum() == len(text)


@TOKENIZERS
@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.binary(), st.text().map(lambda s: s.encode('utf-8', 'surrogatepass'))))
def test_any_bytes_are_encoded_without_loss(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pieces_are_fewer_than_bytes_and_training_is_deterministic():
  assert len(PIECES.encode(TEXT)) < 0.6 * len(TEXT)
  assert 256 < PIECES.vocab_size <= 400
  retrained = train_pieces([TEXT], 400)
  assert retrained.pieces_hash == PIECES.pieces_hash


def test_saving_and_pickling_keep_the_encoding(tmp_path):
  PIECES.save(tmp_path / 'tokenizer.model')
  loaded = text_tokenizer.load('pieces', tmp_path / 'tokenizer.model')
  for copy in (loaded, pickle.loads(pickle.dumps(PIECES))):
    np.testing.assert_array_equal(copy.encode(TEXT), PIECES.encode(TEXT))


@TOKENIZERS
def test_decode_refuses_ids_outside_the_vocabulary(tokenizer):
  with pytest.raises(ValueError, match='must lie in'):
    tokenizer.decode([tokenizer.vocab_size])


def test_other_files_and_impossible_training_are_refused(tmp_path):
  from dalle_jax.data.text.tokenizer import train_tokenizer

  captions = tmp_path / 'captions.model'
  train_tokenizer(['a red circle', 'a blue square'], 300).save(captions)
  for content in (captions.read_bytes(), b'', b'nonsense'):
    (tmp_path / 'file').write_bytes(content)
    with pytest.raises(ValueError, match='Cannot load the tokenizer'):
      text_tokenizer.load('pieces', tmp_path / 'file')
  with pytest.raises(ValueError, match='there is none'):
    train_pieces([b'', b'\n'], 300)
  with pytest.raises(ValueError, match='vocab_size=260'):
    train_pieces(['αβγδεζηθικλμνξοπρστυφχψω'.encode()], 260)
  assert isinstance(PIECES, PieceTokenizer)


def test_lines_with_reserved_characters_are_learnt_from():
  tokenizer = train_pieces(['zebra ▅ ▁ \0 zebra\n'.encode()] * 4, 300)
  assert len(tokenizer.encode(b'zebra')) == 1
  text = 'zebra▅▁\0 zebra'.encode()
  assert tokenizer.decode(tokenizer.encode(text)) == text
