import collections
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.data.wrong_captions import EXCHANGED, WrongCaptions

COLORS, SHAPES, SIZES = ('red', 'blue', 'green'), ('circle', 'square'), ('large', 'small')
NOUNS = [f'a {size} {color} {shape}' for size in SIZES for color in COLORS for shape in SHAPES]
CAPTION = 'a large red circle above a small blue square'
CORPUS = [f'{a} above {b}' for a, b in itertools.permutations(NOUNS, 2)]


@pytest.fixture(scope='module')
def wrong():
  return WrongCaptions(CORPUS)


def _draw(make, caption, count=600):
  rng = np.random.default_rng(0)
  return collections.Counter(make(caption, rng) for _ in range(count))


def test_exchanges_that_read_well_come_equally_often_for_each_number_of_words(wrong):
  found = _draw(wrong.exchanged, CAPTION, 6000)
  by_size = [
    {'a small red circle above a large blue square', 'a large blue circle above a small red square',
     'a large red square above a small blue circle'},
    {'a small blue circle above a large red square', 'a large blue square above a small red circle'},
    {'a small blue square above a large red circle'},
  ]  # fmt: skip
  assert set(found) == set.union(*by_size)
  for results in by_size:
    assert [found[text] for text in results] == pytest.approx([2000 / len(results)] * len(results), rel=0.1)


def test_every_word_that_has_others_in_its_place_is_replaced_equally_often(wrong):
  found = _draw(wrong.replaced, CAPTION)
  by_place = collections.Counter()
  for text, count in found.items():
    (place,) = (i for i, words in enumerate(zip(CAPTION.split(), text.split(), strict=True)) if words[0] != words[1])
    by_place[place] += count
  assert len(found) == 8  # a colour has two others, a size and a shape one
  assert set(by_place) == {1, 2, 3, 6, 7, 8} and min(by_place.values()) > 60


def test_words_are_replaced_as_often_as_they_stood_there():
  found = _draw(WrongCaptions(['a b c', *['a d c'] * 3, 'a e c']).replaced, 'a b c')
  assert set(found) == {'a d c', 'a e c'}
  assert found['a d c'] == pytest.approx(450, rel=0.1)


def test_both_ways_are_taken_and_each_stands_in_for_the_other(wrong):
  found = _draw(wrong, CAPTION)
  of_the_same_words = sum(count for text, count in found.items() if sorted(text.split()) == sorted(CAPTION.split()))
  assert of_the_same_words == pytest.approx(600 * EXCHANGED, rel=0.1)
  alone = 'a large red circle above'
  assert alone not in _draw(wrong, alone, 100)  # there is nothing to exchange
  assert set(_draw(WrongCaptions(['a b', 'b a']), 'a b', 20)) == {'b a'}  # nor here to replace


def test_a_caption_that_cannot_be_changed_is_left(wrong):
  for caption in ('word', '', 'two words'):
    assert wrong(caption, np.random.default_rng(0)) == caption
  assert wrong.exchanged('a large red circle', np.random.default_rng(0)) == 'a large red circle'


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from('abcd'), max_size=6).map(' '.join), min_size=1, max_size=8), st.integers(0, 9))
def test_neighbours_are_known_and_words_kept_or_one_replaced(captions, seed):
  edged = [['', *caption.split(), ''] for caption in captions]
  known = {pair for words in edged for pair in itertools.pairwise(words)}
  wrong = pickle.loads(pickle.dumps(WrongCaptions(captions)))
  for caption in captions:
    words = caption.split()
    ways = (wrong.exchanged, wrong.replaced)
    exchanged, replaced = (make(caption, np.random.default_rng(seed)).split() for make in ways)
    assert sorted(words) == sorted(exchanged)
    assert sum(a != b for a, b in zip(words, replaced, strict=True)) <= 1
    for changed in (exchanged, replaced):
      assert set(itertools.pairwise(['', *changed, ''])) <= known
