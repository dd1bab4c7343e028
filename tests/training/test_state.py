import jax
import numpy as np
import optax
import pytest

from dalle_jax.config import MeshConfig
from dalle_jax.sharding import make_mesh, use_mesh
from dalle_jax.training.state import abstract_state, all_params, create_state


@pytest.fixture
def create(linear_task, mesh):
  def make(**kwargs):
    with use_mesh(mesh):
      return create_state(linear_task(), optax.adam(0.1), mesh, **({'seed': 1, 'use_ema': True} | kwargs))

  return make


def test_the_state_matches_its_abstract_state(create, linear_task, mesh):
  state = create()
  with use_mesh(mesh):
    abstract = abstract_state(linear_task(), optax.adam(0.1), mesh, use_ema=True)
  assert jax.tree.structure(state) == jax.tree.structure(abstract)
  for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
    assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
    assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def test_moments_and_averages_have_the_shardings_of_their_parameters(linear_task):
  mesh = make_mesh(MeshConfig())
  with use_mesh(mesh):
    abstract = abstract_state(linear_task(), optax.adam(0.1), mesh, use_ema=True)
  for tree in (abstract.ema, abstract.opt_state[0].mu, abstract.opt_state[0].nu):
    assert tree['model']['kernel'].sharding == abstract.params['model']['kernel'].sharding
    assert tree['model']['kernel'].sharding.spec == jax.P('fsdp', 'tensor')


def test_collections_are_split_into_trained_and_frozen(create):
  state = create()
  assert set(state.params) == set(state.ema) == {'model'}
  assert set(state.frozen) == {'offset'}
  assert int(state.step) == 0


def test_equal_seeds_give_equal_states(create, assert_trees_equal):
  assert_trees_equal(create(), create())
  assert not np.array_equal(create().params['model']['kernel'], create(seed=2).params['model']['kernel'])


def test_all_params_takes_the_average_if_there_is_one(create):
  state = create()
  state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.params))
  kernel = np.asarray(state.params['model']['kernel'])
  np.testing.assert_array_equal(all_params(state, ema=False)['model']['kernel'], kernel)
  np.testing.assert_array_equal(all_params(state, ema=True)['model']['kernel'], kernel + 1)
  assert set(all_params(state, ema=True)) == {'model', 'offset'}
  without_average = state.replace(ema=None)
  np.testing.assert_array_equal(all_params(without_average, ema=True)['model']['kernel'], kernel)


def test_initial_parameters_replace_a_collection_and_its_average(create):
  initial = {'model': {'kernel': np.full((3, 2), 4, np.float32), 'bias': np.full(2, 5, np.float32)}}
  state = create(initial=initial)
  for tree in (state.params, state.ema):
    np.testing.assert_array_equal(tree['model']['kernel'], initial['model']['kernel'])
    np.testing.assert_array_equal(tree['model']['bias'], initial['model']['bias'])


def test_donating_the_state_keeps_the_initial_arrays_alive(create):
  first = create()
  state = create(initial=first.params)
  jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
  assert not first.params['model']['kernel'].is_deleted()
  np.asarray(first.params['model']['kernel'])


@pytest.mark.parametrize(
  ('initial', 'message'),
  [
    ({'encoder': {}}, "'encoder'; the task has model, offset"),
    ({'offset': {'value': np.zeros(3, np.float32)}}, r'given float32\[3\], expected float32\[2\]'),
    ({'offset': {'other': np.zeros(2, np.float32)}}, 'given nothing, expected'),
    ({'offset': {'value': np.zeros(2, np.int32)}}, r'given int32\[2\]'),
  ],
)
def test_initial_parameters_that_do_not_fit_are_refused(create, initial, message):
  with pytest.raises(ValueError, match=message):
    create(initial=initial)
