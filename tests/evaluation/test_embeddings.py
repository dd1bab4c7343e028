import numpy as np
import pytest

from dalle_jax.evaluation import embeddings

# Two directions: what it is, and how it is.
TABLE = np.array([[5, 0], [5, 5], [0, 1], [0, 0.2], [-1, 0], [1, 1.1]], np.float32)


def test_neighbours_point_the_same_way_whatever_their_length():
  found = embeddings.nearest(TABLE, TABLE[2], 2, without=(2,))
  assert [i for i, _ in found] == [3, 5]
  assert found[0][1] == pytest.approx(1) and found[1][1] == pytest.approx(1.1 / np.hypot(1, 1.1))
  assert len(embeddings.nearest(TABLE, TABLE[2], 99, without=(2, 3))) == 4


def test_an_analogy_leaves_out_the_words_it_asks_with():
  rng = np.random.default_rng(0)
  man, royal, female = np.linalg.qr(rng.normal(size=(8, 3)))[0].T
  words = np.stack([man, man + royal, man + female, man + royal + female, *rng.normal(size=(20, 8))])
  assert embeddings.analogy(words, 0, 1, 2, 1)[0][0] == 3
  assert not {0, 1, 2} & {i for i, _ in embeddings.analogy(words, 0, 1, 2, 24)}


def test_the_table_leaves_out_the_start_and_ngrams_have_none():
  vocabulary = {'vocabulary': {'embedding': np.ones((6, 2))}}
  for params in (vocabulary, {'embeddings': vocabulary}):
    assert embeddings.table(params).shape == (5, 2)
  with pytest.raises(ValueError, match='no embeddings'):
    embeddings.table([{'token': np.zeros(3)}])
