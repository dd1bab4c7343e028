import collections
import itertools
import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.data.exchanges import Exchanges

COLORS, SHAPES, SIZES = ('red', 'blue', 'green'), ('circle', 'square'), ('large', 'small')
NOUNS = [f'a {size} {color} {shape}' for size in SIZES for color in COLORS for shape in SHAPES]
CORPUS = [f'{a} above {b}' for a, b in itertools.permutations(NOUNS, 2)]


def test_every_exchange_that_reads_well_comes_equally_often():
  exchanges, rng = Exchanges(CORPUS), np.random.default_rng(0)
  found = collections.Counter(exchanges('a large red circle above a small blue square', rng) for _ in range(600))
  assert set(found) == {
    'a small red circle above a large blue square', 'a large blue circle above a small red square',
    'a large red square above a small blue circle', 'a small blue circle above a large red square',
    'a large blue square above a small red circle', 'a small blue square above a large red circle',
  }  # fmt: skip
  assert min(found.values()) > 60


def test_a_caption_without_such_an_exchange_is_left():
  exchanges, rng = Exchanges(CORPUS), np.random.default_rng(0)
  for caption in ('a large red circle', 'a large red circle above a large red circle', 'word', '', 'two words'):
    assert exchanges(caption, rng) == caption


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from('abcd'), max_size=6).map(' '.join), min_size=1, max_size=8), st.integers(0, 9))
def test_words_are_kept_and_neighbours_are_known(captions, seed):
  edged = [['', *caption.split(), ''] for caption in captions]
  known = {pair for words in edged for pair in itertools.pairwise(words)}
  exchanges = pickle.loads(pickle.dumps(Exchanges(captions)))
  for caption in captions:
    words, changed = caption.split(), exchanges(caption, np.random.default_rng(seed)).split()
    assert sorted(words) == sorted(changed)
    assert set(itertools.pairwise(['', *changed, ''])) <= known
