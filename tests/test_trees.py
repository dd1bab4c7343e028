import collections

import numpy as np

from dalle_jax import trees


def test_trees_with_equal_paths_dtypes_and_shapes_do_not_differ():
  tree = {'a': np.zeros((2, 3)), 'b': [np.zeros(1, np.int32)]}
  assert trees.differences(tree, {'a': np.ones((2, 3)), 'b': [np.ones(1, np.int32)]}) == ''


def test_every_differing_leaf_is_listed():
  given = {'a': np.zeros((2, 3)), 'b': np.zeros(1, np.int32), 'only': np.zeros(2)}
  expected = {'a': np.zeros((3, 2)), 'b': np.zeros(1, np.float32), 'new': np.zeros(2)}
  assert trees.differences(given, expected).split('; ') == [
    "['a']: given float64[2, 3], expected float64[3, 2]",
    "['b']: given int32[1], expected float32[1]",
    "['new']: given nothing, expected float64[2]",
    "['only']: given float64[2], expected nothing",
  ]


def test_differences_beyond_the_limit_are_counted():
  tree = {str(i): np.zeros(1) for i in range(9)}
  assert trees.differences(tree, {}).endswith('; and 4 more')


def test_attributes_are_compared_as_dictionary_keys():
  state = collections.namedtuple('State', 'a b')(np.zeros(1), [np.zeros(2)])
  assert trees.differences(state, {'a': np.zeros(1), 'b': [np.zeros(2)]}) == ''
