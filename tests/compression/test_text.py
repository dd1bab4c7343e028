import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.compression import text
from dalle_jax.data.text.text_tokenizer import ByteTokenizer, train_pieces

PIECES = train_pieces([b'the cat sat on the mat and the dog lay on the log\n' * 20], 300)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 40), st.sampled_from(['bytes', 'pieces']))
def test_chunks_join_to_the_file_and_all_but_the_last_are_full(data, num_tokens, kind):
  tokenizer = ByteTokenizer() if kind == 'bytes' else PIECES
  chunks = list(text.chunks(io.BytesIO(data), tokenizer, num_tokens))
  assert b''.join(content for _, content in chunks) == data
  assert [tokenizer.decode(ids) for ids, _ in chunks] == [content for _, content in chunks]
  assert all(len(ids) == num_tokens for ids, _ in chunks[:-1])
  assert all(0 < len(ids) <= num_tokens for ids, _ in chunks)


def test_only_a_few_chunks_are_read_ahead():
  class Endless(io.RawIOBase):
    """An endless file that counts the bytes read from it."""

    num_read = 0

    def read(self, size=-1):
      self.num_read += size
      return (b'the cat sat on the mat ' * (size // 23 + 1))[:size]

  file = Endless()
  chunks = text.chunks(file, PIECES, 64)
  sizes = [len(content) for _, content in (next(chunks) for _ in range(200))]
  assert file.num_read - sum(sizes) < 10 * max(sizes)


@pytest.mark.parametrize('count', [0, 1, 8, 9, 17])
def test_all_rows_but_the_last_are_full(count):
  ids = np.arange(count)
  rows = text.rows(ids, 8)
  assert all(len(row) == 8 for row in rows[:-1])
  assert np.concatenate([np.empty(0, int), *rows]).tolist() == ids.tolist()
