"""Meshes of fake devices; `tests/multi_device` computes on real ones."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from dalle_jax import mesh as meshes
from dalle_jax.config import Config, MeshConfig
from dalle_jax.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Device:
  """The attributes of a device that `make_mesh` reads."""

  id: int
  process_index: int = 0
  platform: str = 'cpu'
  device_kind: str = 'cpu'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuDevice(Device):
  slice_index: int
  coords: tuple[int, int, int]
  core_on_chip: int = 0
  platform: str = 'tpu'
  device_kind: str = 'TPU v4'


def hosts(count, each):
  """Devices of `count` hosts with `each` devices, in an order that interleaves the hosts."""
  return [Device(p * each + i, p) for i in range(each) for p in range(count)]


def slices(count, shape=(2, 2, 2)):
  """Devices of `count` slices, each a torus of this shape, with four devices per host."""
  each = int(np.prod(shape))
  return [
    TpuDevice(i * each + j, (i * each + j) // 4, slice_index=i, coords=coords)
    for i in range(count)
    for j, coords in enumerate(np.ndindex(shape))
  ]


def make(devices, model=None, **sizes):
  return make_mesh(MeshConfig(**sizes), devices, model)


def _sizes(mesh):
  return tuple(mesh.shape[name] for name in ('dcn_data', 'data', 'fsdp', 'tensor'))


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ((1, -1, 1, 1), (1, 8, 1, 1)),
    ((1, -1, 2, 1), (1, 4, 2, 1)),
    ((1, 1, -1, 4), (1, 1, 2, 4)),
    ((1, 2, 4, -1), (1, 2, 4, 1)),
    ((1, 2, 2, 2), (1, 2, 2, 2)),
    ((2, -1, 2, 1), (2, 2, 2, 1)),
    ((-1, 2, 2, 1), (2, 2, 2, 1)),
  ],
)
def test_an_axis_of_minus_one_gets_the_remaining_devices(given, expected):
  assert _sizes(make(hosts(1, 8), **dict(zip(meshes.AXES, given, strict=True)))) == expected


@pytest.mark.parametrize(
  ('count', 'given', 'expected'),
  [
    (8, {}, (1, 1, 8, 1)),
    (512, {}, (1, 4, 128, 1)),  # 3968 is 2^7 x 31
    (96, {}, (1, 3, 32, 1)),
    (512, {'tensor': 2}, (1, 2, 128, 2)),
    (512, {'dcn_data': 2}, (2, 2, 128, 1)),
  ],
)
def test_an_open_fsdp_axis_gets_the_largest_size_that_divides_the_model(count, given, expected):
  model = Config.from_dict({'prior': {'num_heads': 62, 'embed_dim': 3968}})
  assert _sizes(make(hosts(count // 4, 4), model, data=-1, fsdp=-1, **given)) == expected
  assert _sizes(make(hosts(count // 4, 4), None, data=-1, fsdp=-1, **given))[1] == 1


def test_open_data_and_fsdp_axes_do_not_hide_other_sizes_that_do_not_fit():
  assert _proposed(hosts(1, 8), None, data=-1, fsdp=-1, tensor=3)[0] == (1, 1, 8, 1)
  assert _proposed(hosts(1, 8), None, data=-1, fsdp=-1, tensor=16)[0] == (1, 1, 8, 1)
  for pair in ({'data': -1, 'tensor': -1}, {'data': -1, 'fsdp': -1, 'tensor': -1}):
    with pytest.raises(ValueError, match=r'At most one axis of config\.mesh may be -1, or data and fsdp'):
      MeshConfig(**pair)


def test_a_mesh_of_one_device_has_automatic_axes():
  for mesh in (make_mesh(), make_mesh(MeshConfig()), meshes.one_device_mesh()):
    assert _sizes(mesh) == (1, 1, 1, 1)
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize('given', [(3, 1, 1), (-1, 3, 1), (2, 2, 1), (16, 1, 1), (-1, 16, 1)])
def test_a_mesh_that_does_not_fit_is_refused_with_meshes_that_do(given):
  data, fsdp, tensor = given
  with pytest.raises(ValueError, match=r'config\.mesh .* does not fit 8 device\(s\).* -1 to fill') as error:
    make(hosts(1, 8), data=data, fsdp=fsdp, tensor=tensor)
  proposals = re.findall(r'\d+(?:x\d+){3}', str(error.value))
  assert 1 < len(set(proposals)) <= 8
  assert {np.prod(list(map(int, sizes.split('x')))) for sizes in proposals} == {8}


def _proposed(devices, model, **sizes):
  """The sizes that the error for these sizes proposes."""
  with pytest.raises(ValueError, match=r'config\.mesh') as error:
    make(devices, model, **sizes)
  return [tuple(map(int, sizes.split('x'))) for sizes in re.findall(r'\d+(?:x\d+){3}', str(error.value))]


def test_proposals_stay_close_to_the_requested_sizes():
  assert _proposed(hosts(1, 8), None, data=3, fsdp=4)[0] == (1, 2, 4, 1)
  assert _proposed(hosts(1, 8), None, data=1, fsdp=3, tensor=2)[0] == (1, 1, 4, 2)


def test_proposals_divide_the_heads_and_widths_of_the_model():
  model_12b = Config.from_dict({'prior': {'num_layers': 64, 'embed_dim': 3968, 'num_heads': 62}})
  proposals = _proposed(hosts(1, 512), model_12b, data=1, fsdp=512, tensor=4)
  assert all(62 % tensor == 0 and 3968 % fsdp == 0 for _, _, fsdp, tensor in proposals)
  assert (1, 2, 128, 2) in proposals or (1, 4, 128, 1) in proposals
  reranker = {'task': 'reranker', 'reranker': {'image_width': 96, 'image_num_heads': 6, 'text_num_heads': 4}}
  assert {sizes[3] for sizes in _proposed(hosts(1, 8), Config.from_dict(reranker), data=3)} == {1, 2}


def test_each_index_of_dcn_data_is_one_slice():
  devices = slices(2)
  mesh = make(devices[::-1], dcn_data=2, data=2, fsdp=2, tensor=2)
  for index, block in enumerate(mesh.devices):
    assert {device.slice_index for device in block.flat} == {index}
  assert sorted(device.id for device in mesh.devices.flat) == list(range(16))


def test_a_mesh_axis_may_split_an_axis_of_the_torus():
  mesh = make(slices(1, (4, 4, 1)), data=1, fsdp=8, tensor=2)
  assert _sizes(mesh) == (1, 1, 8, 2)


def test_without_a_configuration_the_batch_is_split_over_all_slices():
  assert _sizes(make_mesh(None, slices(4))) == (4, 8, 1, 1)


@pytest.mark.parametrize(('sizes', 'number'), [({'fsdp': 2}, 2), ({'dcn_data': 4}, 2), ({'dcn_data': 2}, 1)])
def test_dcn_data_must_be_the_number_of_slices(sizes, number):
  pattern = rf'config\.mesh\.dcn_data is \d, but the {8 * number} devices are in {number} slice\(s\).*dcn_data={number}'
  with pytest.raises(ValueError, match=pattern):
    make(slices(number), **sizes)


def test_proposals_keep_the_number_of_slices():
  assert {sizes[0] for sizes in _proposed(slices(2), None, dcn_data=2, data=3)} == {2}


def test_without_slices_each_index_of_dcn_data_is_a_group_of_hosts():
  mesh = make(hosts(4, 2), dcn_data=2, data=2, fsdp=2)
  assert [[device.process_index for device in block.flat] for block in mesh.devices] == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_dcn_data_must_divide_the_hosts_into_equal_groups():
  with pytest.raises(ValueError, match=r'config\.mesh\.dcn_data is 3, .* 4 hosts .* one of 1, 2, 4\.'):
    make(hosts(4, 3), dcn_data=3)
