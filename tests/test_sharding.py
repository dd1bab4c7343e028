"""Shardings on one device; `tests/multi_device` compares meshes of several."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from dalle_jax import sharding
from dalle_jax.config import Config
from dalle_jax.sharding import batch_divisor, make_mesh, rounded_batch


def _mesh(sizes):
  """An abstract mesh of (data, fsdp, tensor), or (dcn_data, data, fsdp, tensor)."""
  return AbstractMesh((1,) * (4 - len(sizes)) + sizes, sharding.AXES)


@pytest.mark.parametrize(('sizes', 'shards'), [((8, 1, 1), 8), ((2, 3, 2), 6), ((2, 2, 3, 5), 12)])
def test_batches_are_split_over_all_axes_except_tensor(sizes, shards):
  assert batch_divisor(_mesh(sizes)) == shards


@pytest.mark.parametrize(('batch_size', 'rounded'), [(1, 6), (6, 6), (7, 12), (12, 12), (13, 18)])
def test_batch_sizes_are_rounded_up_to_a_multiple_of_the_batch_shards(batch_size, rounded):
  assert rounded_batch(batch_size, _mesh((2, 3, 2))) == rounded
  assert rounded_batch(batch_size, _mesh((1, 1, 4))) == batch_size


def _box(shape, *names):
  return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names=names)


def _spec(box, sizes=(2, 2, 2)):
  return sharding.param_shardings({'leaf': box}, _mesh(sizes))['leaf'].spec


def test_parameters_are_split_by_their_logical_axis_names():
  assert _spec(_box((6, 3, 4, 8), 'embed', 'qkv', 'heads', 'head_dim')) == P('fsdp', None, 'tensor', None)
  assert _spec(_box((10, 6), 'vocab', 'embed')) == P('tensor', 'fsdp')
  assert _spec(_box((12, 6), 'mlp_contracted', 'embed')) == P(('tensor', 'fsdp'), None)
  assert _spec(_box((4, 5), None, 'position')) == P(None, None)
  assert _spec(jax.ShapeDtypeStruct((4, 4), jnp.float32)) == P()  # unnamed: a copy on every device


def test_dimensions_that_a_mesh_axis_does_not_divide_are_not_split():
  assert _spec(_box((7, 6), 'vocab', 'embed')) == P(None, 'fsdp')
  assert _spec(_box((7, 6), 'vocab', 'embed'), (1, 4, 7)) == P('tensor', None)
  assert _spec(_box((6, 8), 'mlp_contracted', 'embed')) == P('tensor', 'fsdp')
  assert _spec(_box((9, 8), 'mlp_contracted', 'embed'), (1, 3, 2)) == P('fsdp', None)


def test_a_mesh_axis_splits_at_most_one_dimension():
  assert _spec(_box((4, 8), 'embed', 'embed')) == P('fsdp', None)


def test_a_logical_axis_without_a_rule_is_an_assertion_error():
  with pytest.raises(AssertionError, match='embeds'):
    _spec(_box((4,), 'embeds'))


def test_shardings_have_the_structure_of_the_unboxed_tree():
  mesh = make_mesh()
  tree = {'a': _box((4,), 'embed'), 'b': [jax.ShapeDtypeStruct((), jnp.int32)]}
  shardings = sharding.param_shardings(tree, mesh)
  assert jax.tree.structure(shardings) == jax.tree.structure(nn.unbox(tree))


def test_a_parameter_without_optimizer_state_needs_no_sharding():
  tree = {'kept': _box((4,), None), 'left_out': nn.LogicallyPartitioned(optax.MaskedNode(), names=('embed',))}
  shardings = sharding.param_shardings(tree, make_mesh())
  assert shardings['left_out'] == optax.MaskedNode()
  assert shardings['kept'].spec == P(None)


def test_batches_become_global_arrays():
  mesh = make_mesh()
  batch = {'image': np.arange(12, dtype=np.uint8).reshape(4, 3)}
  for make_global in (sharding.to_global, sharding.from_whole):
    images = make_global(batch, mesh)['image']
    np.testing.assert_array_equal(images, batch['image'])
    assert images.sharding == sharding.batch_sharding(mesh)


def _check(sizes, **changes):
  groups = {'prior': {'num_heads': 4}} | changes
  sharding.check(Config.from_dict(groups), _mesh(sizes))


def test_a_configuration_that_fits_the_mesh_is_accepted():
  _check((2, 2, 2))
  _check((1, 1, 1), prior_training={'batch_size': 7})


@pytest.mark.parametrize('group', ['dvae_training', 'prior_training'])
def test_batch_sizes_must_be_divisible_by_shards_and_accumulation_steps(group):
  key = rf'config\.{group}\.batch_size'
  with pytest.raises(ValueError, match=f'{key} 12 is not divisible by 8: 8 batch shards .* 8 or 16'):
    _check((2, 4, 1), **{group: {'batch_size': 12}})
  with pytest.raises(ValueError, match=f'{key} 16 is not .* 4 accumulation step.* multiple of 32, such as 32,'):
    _check((2, 4, 1), **{group: {'batch_size': 16, 'accumulation_steps': 4}})


class PartlyHeldSharding:
  """A sharding of 8 rows. This process holds four of them, each on two devices along `tensor`."""

  def addressable_devices_indices_map(self, shape):
    assert shape == (8,)
    return dict(enumerate([(slice(4, 6),), (slice(0, 2),), (slice(0, 2),), (slice(4, 6),)]))


def test_a_process_reads_the_rows_that_its_devices_hold(monkeypatch):
  assert sharding.own_rows(make_mesh(), 4) == (0, 1, 2, 3)
  monkeypatch.setattr(sharding, 'batch_sharding', lambda mesh: PartlyHeldSharding())
  assert sharding.own_rows(make_mesh(), 8) == (0, 1, 4, 5)
