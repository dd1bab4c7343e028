"""Per-device arrays of the training step compiled for eight devices; see `compile_step.py`."""

import math

import pytest
from processes import report_of, run_on_eight_devices

COLLECTIVES = ('all-gather', 'all-to-all', 'collective-permute', 'all-reduce', 'reduce-scatter')


@pytest.fixture(scope='module', params=['1x2x2x2', pytest.param('2x1x1x4', marks=pytest.mark.slow)])
def step(request):
  return report_of(run_on_eight_devices('compile_step.py', request.param))


def _is_collective(operation):
  return operation.removesuffix('-start').removesuffix('-done') in COLLECTIVES


def test_logits_are_computed_sharded_over_the_vocabulary(step):
  for size, length in step['vocabularies']:
    shard_shape = [step['rows'], length, size // step['tensor']]
    assert any(sorted(sizes) == sorted(shard_shape) for _, _, sizes in step['arrays'])
    unsharded = [
      array for array in step['arrays'] if size in array[2] and math.prod(array[2]) >= step['rows'] * length * size
    ]
    assert unsharded == []


def test_logits_are_never_communicated(step):
  for size, length in step['vocabularies']:
    shard_size = size // step['tensor']
    communicated = [
      (operation, sizes)
      for operation, _, sizes in step['arrays']
      if _is_collective(operation) and shard_size in sizes and math.prod(sizes) >= step['rows'] * length * shard_size
    ]
    assert communicated == []


def test_images_stay_on_the_device_that_read_them(step):
  local = step['rows'] * math.prod(step['image'])
  pixels = [(operation, sizes) for operation, kind, sizes in step['arrays'] if kind == 'u8']
  assert max(math.prod(sizes) for _, sizes in pixels) == local
  assert not any(_is_collective(operation) for operation, _ in pixels)
  images = [(operation, sizes) for operation, _, sizes in step['arrays'] if sizes[-3:] == step['image']]
  assert images
  assert {sizes[0] for _, sizes in images} == {step['rows']}
  assert not any(_is_collective(operation) for operation, _ in images)
