import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.compression import text
from dalle_jax.data.text_tokenizer import ByteTokenizer, train_pieces

PIECES = train_pieces([b'the cat sat on the mat and the dog lay on the log\n' * 20], 300)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 40), st.sampled_from(['bytes', 'pieces']))
def test_chunks_join_to_the_file_and_are_full(data, num_tokens, kind):
  tokenizer = ByteTokenizer() if kind == 'bytes' else PIECES
  found = list(text.chunks(io.BytesIO(data), tokenizer, num_tokens))
  assert b''.join(content for _, content in found) == data
  assert [tokenizer.decode(ids) for ids, _ in found] == [content for _, content in found]
  assert all(len(ids) == num_tokens for ids, _ in found[:-1])
  assert all(0 < len(ids) <= num_tokens for ids, _ in found)


def test_little_of_the_file_is_held():
  class Endless(io.RawIOBase):
    """A file without end that counts what is read of it."""

    taken = 0

    def read(self, size=-1):
      self.taken += size
      return (b'the cat sat on the mat ' * (size // 23 + 1))[:size]

  file = Endless()
  parts = text.chunks(file, PIECES, 64)
  sizes = [len(content) for _, content in (next(parts) for _ in range(200))]
  assert file.taken - sum(sizes) < 10 * max(sizes)


@pytest.mark.parametrize('count', [0, 1, 8, 9, 17])
def test_rows_are_full_but_the_last(count):
  ids = np.arange(count)
  rows = text.rows(ids, 8)
  assert all(len(row) == 8 for row in rows[:-1])
  assert np.concatenate([np.empty(0, int), *rows]).tolist() == ids.tolist()
