import collections
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.data.text.wrong_captions import EXCHANGED, WrongCaptions

COLORS, SHAPES, SIZES = ('red', 'blue', 'green'), ('circle', 'square'), ('large', 'small')
NOUNS = [f'a {size} {color} {shape}' for size in SIZES for color in COLORS for shape in SHAPES]
CAPTION = 'a large red circle above a small blue square'
CORPUS = [f'{a} above {b}' for a, b in itertools.permutations(NOUNS, 2)]


@pytest.fixture(scope='module')
def wrong():
  return WrongCaptions(CORPUS)


def _sample(make, caption, count=600):
  """Counts the results of `count` calls of make(caption, rng)."""
  rng = np.random.default_rng(0)
  return collections.Counter(make(caption, rng) for _ in range(count))


def test_exchange_samples_phrase_lengths_uniformly_then_results_uniformly(wrong):
  counts = _sample(wrong.exchanged, CAPTION, 6000)
  results_by_length = [
    {'a small red circle above a large blue square', 'a large blue circle above a small red square',
     'a large red square above a small blue circle'},
    {'a small blue circle above a large red square', 'a large blue square above a small red circle'},
    {'a small blue square above a large red circle'},
  ]  # fmt: skip
  assert set(counts) == set.union(*results_by_length)
  for results in results_by_length:
    assert [counts[text] for text in results] == pytest.approx([2000 / len(results)] * len(results), rel=0.1)


def test_replacement_samples_the_position_uniformly(wrong):
  counts = _sample(wrong.replaced, CAPTION)
  count_by_position = collections.Counter()
  for text, count in counts.items():
    (position,) = (i for i, pair in enumerate(zip(CAPTION.split(), text.split(), strict=True)) if pair[0] != pair[1])
    count_by_position[position] += count
  assert len(counts) == 8  # two other colours for each colour, one other size or shape for each size and shape
  assert set(count_by_position) == {1, 2, 3, 6, 7, 8} and min(count_by_position.values()) > 60


def test_replacement_samples_words_by_their_frequency_between_the_neighbours():
  counts = _sample(WrongCaptions(['a b c', *['a d c'] * 3, 'a e c']).replaced, 'a b c')
  assert set(counts) == {'a d c', 'a e c'}
  assert counts['a d c'] == pytest.approx(450, rel=0.1)


def test_both_ways_are_used_and_each_replaces_the_other_if_it_is_impossible(wrong):
  counts = _sample(wrong, CAPTION)
  num_exchanged = sum(count for text, count in counts.items() if sorted(text.split()) == sorted(CAPTION.split()))
  assert num_exchanged == pytest.approx(600 * EXCHANGED, rel=0.1)
  only_replaceable = 'a large red circle above'
  assert only_replaceable not in _sample(wrong, only_replaceable, 100)
  only_exchangeable = WrongCaptions(['a b', 'b a'])
  assert set(_sample(only_exchangeable, 'a b', 20)) == {'b a'}


def test_a_caption_that_cannot_be_changed_is_returned_unchanged(wrong):
  for caption in ('word', '', 'two words'):
    assert wrong(caption, np.random.default_rng(0)) == caption
  assert wrong.exchanged('a large red circle', np.random.default_rng(0)) == 'a large red circle'


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from('abcd'), max_size=6).map(' '.join), min_size=1, max_size=8), st.integers(0, 9))
def test_results_have_only_known_neighbours_and_the_same_words_except_one_replaced(captions, seed):
  with_edges = [['', *caption.split(), ''] for caption in captions]
  known_pairs = {pair for words in with_edges for pair in itertools.pairwise(words)}
  wrong = pickle.loads(pickle.dumps(WrongCaptions(captions)))
  for caption in captions:
    words = caption.split()
    ways = (wrong.exchanged, wrong.replaced)
    exchanged, replaced = (make(caption, np.random.default_rng(seed)).split() for make in ways)
    assert sorted(words) == sorted(exchanged)
    assert sum(a != b for a, b in zip(words, replaced, strict=True)) <= 1
    for changed in (exchanged, replaced):
      assert set(itertools.pairwise(['', *changed, ''])) <= known_pairs
