import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.data import similar

WORDS = ('red', 'blue', 'circle', 'square', 'above', 'a')
CAPTIONS = st.lists(st.lists(st.sampled_from(WORDS), max_size=4).map(' '.join), min_size=1, max_size=30)


class _Source:
  def __init__(self, captions):
    self.captions = captions

  def __len__(self):
    return len(self.captions)

  def __getitem__(self, index):
    return {'caption': self.captions[index], 'key': str(index)}


@settings(max_examples=50, deadline=None)
@given(CAPTIONS, st.integers(1, 9), st.integers(0, 100))
def test_every_record_comes_once(captions, group_size, seed):
  order = similar.similar_order(captions, group_size, seed)
  assert sorted(order.tolist()) == list(range(len(captions)))
  np.testing.assert_array_equal(order, similar.similar_order(captions, group_size, seed))


def test_captions_of_the_same_words_in_another_order_are_neighbours():
  colors, shapes = ('red', 'blue', 'green', 'pink'), ('circle', 'square', 'diamond')
  captions = [
    f'a {first} {one} above a {second} {other}'
    for first in colors for second in colors if first != second for one in shapes for other in shapes if one != other
  ]  # fmt: skip
  assert len(captions) == 72
  for seed in range(3):  # four captions have the same words: of two colours and two shapes
    order = similar.similar_order(captions, 4, seed)
    assert all(len({frozenset(captions[i].split()) for i in group}) == 1 for group in order.reshape(-1, 4))


def test_epochs_are_grouped_and_ordered_anew():
  captions = [f'{WORDS[i % 4]} {WORDS[i // 4 % 4]} {WORDS[i // 16]}' for i in range(64)]
  source = similar.InGroups(_Source(captions), 4, num_examples=130, seed=0)
  assert len(source) == 192
  keys = [int(source[i]['key']) for i in range(192)]
  epochs = [keys[begin : begin + 64] for begin in (0, 64, 128)]
  assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
  groups = [{frozenset(epoch[i : i + 4]) for i in range(0, 64, 4)} for epoch in epochs]
  assert len(groups[0] & groups[1]) < 8 and len(groups[1] & groups[2]) < 8
  again = pickle.loads(pickle.dumps(source))
  assert [int(again[i]['key']) for i in range(192)] == keys
  other = similar.InGroups(_Source(captions), 4, num_examples=130, seed=1)
  assert [int(other[i]['key']) for i in range(192)] != keys


@pytest.mark.parametrize('group_size', [3, 7])
def test_the_last_group_holds_what_is_left(group_size):
  order = similar.similar_order(['a'] * 5 + ['b'] * 5, group_size, 0)
  assert sorted(order.tolist()) == list(range(10))
