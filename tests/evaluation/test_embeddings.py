import numpy as np
import pytest

from dalle_jax.evaluation import embeddings

# Rows 0 and 4 lie on the first axis, rows 2 and 3 on the second; rows 1 and 5 lie between.
TABLE = np.array([[5, 0], [5, 5], [0, 1], [0, 0.2], [-1, 0], [1, 1.1]], np.float32)


def test_neighbours_are_sorted_by_cosine_similarity_whatever_their_length():
  neighbours = embeddings.nearest(TABLE, TABLE[2], 2, without=(2,))
  assert [i for i, _ in neighbours] == [3, 5]
  assert neighbours[0][1] == pytest.approx(1) and neighbours[1][1] == pytest.approx(1.1 / np.hypot(1, 1.1))
  assert len(embeddings.nearest(TABLE, TABLE[2], 99, without=(2, 3))) == 4


def test_an_analogy_excludes_the_words_of_its_question():
  rng = np.random.default_rng(0)
  man, royal, female = np.linalg.qr(rng.normal(size=(8, 3)))[0].T
  words = np.stack([man, man + royal, man + female, man + royal + female, *rng.normal(size=(20, 8))])
  assert embeddings.analogy(words, 0, 1, 2, 1)[0][0] == 3
  assert not {0, 1, 2} & {i for i, _ in embeddings.analogy(words, 0, 1, 2, 24)}


def test_the_table_has_no_start_token_and_ngrams_have_no_table():
  vocabulary = {'vocabulary': {'embedding': np.ones((6, 2))}}
  for params in (vocabulary, {'embeddings': vocabulary}):
    assert embeddings.table(params).shape == (5, 2)
  with pytest.raises(ValueError, match='no embeddings'):
    embeddings.table([{'token': np.zeros(3)}])
