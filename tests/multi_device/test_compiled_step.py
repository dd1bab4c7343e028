"""What the compiled train step of eight devices makes on each of them; see `compile_step.py`."""

import math

import pytest
from processes import report_of, run_on_eight_devices

COLLECTIVES = ('all-gather', 'all-to-all', 'collective-permute', 'all-reduce', 'reduce-scatter')


@pytest.fixture(scope='module', params=['1x2x2x2', pytest.param('2x1x1x4', marks=pytest.mark.slow)])
def step(request):
  return report_of(run_on_eight_devices('compile_step.py', request.param))


def _moves(operation):
  return operation.removesuffix('-start').removesuffix('-done') in COLLECTIVES


def test_logits_are_made_in_parts_of_the_vocabulary(step):
  for size, length in step['vocabularies']:
    part = [step['rows'], length, size // step['tensor']]
    assert any(sorted(sizes) == sorted(part) for _, _, sizes in step['arrays'])
    whole = [made for made in step['arrays'] if size in made[2] and math.prod(made[2]) >= step['rows'] * length * size]
    assert whole == []


def test_no_logits_are_moved(step):
  for size, length in step['vocabularies']:
    part = size // step['tensor']
    moved = [
      made
      for made in step['arrays']
      if _moves(made[0]) and part in made[2] and math.prod(made[2]) >= step['rows'] * length * part
    ]
    assert moved == []


def test_images_stay_where_they_were_read(step):
  local = step['rows'] * math.prod(step['image'])
  pixels = [(operation, sizes) for operation, kind, sizes in step['arrays'] if kind == 'u8']
  assert max(math.prod(sizes) for _, sizes in pixels) == local
  assert not any(_moves(operation) for operation, _ in pixels)
  as_floats = [made for made in step['arrays'] if made[2][-3:] == step['image']]
  assert as_floats
  assert {made[2][0] for made in as_floats} == {step['rows']}
  assert not any(_moves(made[0]) for made in as_floats)
