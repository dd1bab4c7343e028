import pytest

from dalle_jax.planning import hlo
from dalle_jax.planning.hlo import HloProgram

# The entry has three loops over the same body. The first has a trip count of 15, a constant in its condition. The
# second states its trip count of 2. The trip count of the third is unknown. The body has a fusion, two blocking
# collectives, an asynchronous all-gather in three instructions, and a reduce-scatter written as an all-reduce and a
# slice.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y), backend_config={"window_config":{"estimated_cycles":"7"}}
}

%condition (p: (s32[], bf16[8,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(15)
  %p = (s32[], bf16[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %bound), direction=LT, backend_config={"window_config":{"estimated_cycles":"1"}}
}

%other (p: (s32[])) -> pred[] {
  %p.1 = (s32[]) parameter(0)
  %j = s32[] get-tuple-element(%p.1), index=0
  %end = s32[] get-tuple-element(%p.1), index=1
  ROOT %lt.1 = pred[] compare(%j, %end), direction=LT
}

%begun (a: bf16[8,128]) -> bf16[64,128] {
  %a = bf16[8,128] parameter(0)
  ROOT %gathered = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%a), dimensions={0}, replica_groups=[4,8]<=[32]
}

%all-reduce-scatter.3 (b: f32[16,8]) -> f32[4,8] {
  %b = f32[16,8] parameter(0)
  %whole = f32[16,8] all-reduce(%b), replica_groups=mesh['axis_0'=4,'axis_1'=8], device_ids=([8,4]T(1,0)) {'axis_0'}, \
to_apply=%add
  ROOT %mine = f32[4,8] dynamic-slice(%whole), dynamic_slice_sizes={4,8}
}

%async_collective_fusion.1 (a: bf16[8,128]) -> bf16[64,128] {
  %a.2 = bf16[8,128] parameter(0)
  ROOT %going_on = bf16[64,128] all-gather(%a.2), dimensions={0}, replica_groups=[4,8]<=[32]
}

%fused (a: bf16[8,128]) -> bf16[8,128] {
  %a.1 = bf16[8,128] parameter(0)
  ROOT %negated = bf16[8,128] negate(%a.1), backend_config={"window_config":{"estimated_cycles":"999"}}
}

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p.2 = (s32[], bf16[8,128]) parameter(0)
  %f = bf16[8,128]{1,0:T(8,128)} fusion(%p.2), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/mlp"}, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %r = (f32[16]{0}, /*index=1*/f32[4,4]{1,0}) all-reduce(%f, %f), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %s = f32[2,8]{1,0} reduce-scatter(%f), replica_groups=mesh['a'=2,'b'=16] {'b':(1)4}, dimensions={0}, to_apply=%add
  %async-collective-start = bf16[64,128] fusion(%f), kind=kCustom, calls=%begun
  %g = bf16[64,128] fusion(%f), kind=kOutput, calls=%async_collective_fusion.1
  %async-collective-done.1 = bf16[64,128] fusion(%f), kind=kCustom, calls=%begun
  %h = f32[4,8] fusion(%f), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %t = (s32[], bf16[8,128]) tuple(%f)
}

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x.1 = bf16[8,128] parameter(0)
  %w = (s32[], bf16[8,128]) while(%x.1), condition=%condition, body=%body
  %w.1 = (s32[], bf16[8,128]) while(%w), condition=%other, body=%body, \
backend_config={"known_trip_count":{"n":"2"},"window_config":{"estimated_cycles":"0"}}
  %w.2 = (s32[], bf16[8,128]) while(%w), condition=%other, body=%body
  %b = (bf16[4]{0}, bf16[4]{0}, u32[]) collective-permute-start(%x.1), source_target_pairs={{0,1},{1,0}}
  ROOT %c = bf16[8,128] copy(%x.1), backend_config={"window_config":{"estimated_cycles":500}}
}
"""


@pytest.fixture
def program():
  return HloProgram(PROGRAM, unknown_trips=3)


def test_cycles_are_multiplied_by_trip_counts(program):
  # The body runs 15 + 2 + 3 times. Computations inside fusions and reductions, and loop conditions, do not count.
  assert program.cycles == 500 + 20 * 1000


def test_costs_are_sorted_and_have_counts_and_sources(program):
  first, second = program.costs()
  assert (first.instruction.name, first.count, first.cycles) == ('f', 20, 20_000)
  assert first.instruction.source == 'jit(step)/mlp'
  assert (second.instruction.name, second.cycles) == ('c', 500)


def test_collectives_are_summed_by_kind_and_group_size(program):
  totals = {(each.kind, each.group): (each.is_async, each.count, each.bytes) for each in program.collectives()}
  assert totals == {
    ('all-gather', 8): (True, 20, 20 * 64 * 128 * 2 * 7 // 8),
    ('all-reduce', 4): (False, 20, 20 * 2 * (16 + 16) * 4 * 3 // 4),
    # One is an explicit reduce-scatter, the other an all-reduce and a slice.
    ('reduce-scatter', 4): (False, 40, 20 * (2 * 8 + 4 * 8) * 4 * 3),
    ('collective-permute', 2): (True, 1, 4 * 2),
  }


def test_collectives_are_sorted_by_bytes(program):
  sizes = [collective.bytes for collective in program.collectives()]
  assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
  ('shape', 'sizes'),
  [
    ('bf16[8,128]{1,0:T(8,128)(2,1)}', [2048]),
    ('(f32[], s32[3]{0}, /*index=2*/pred[5])', [4, 12, 5]),
    ('f8e4m3fn[16]', [16]),
    ('u4[6]', [3]),
    ('token[]', [0]),
  ],
)
def test_array_sizes_of_types(shape, sizes):
  assert hlo.array_sizes(shape) == sizes


def test_full_rematerialisations_are_found_in_the_log():
  log = 'noise\nE0000 spmd: [SPMD] Involuntary full rematerialization. The compiler cannot go from ...\nmore noise'
  (line,) = hlo.full_rematerialisations(log)
  assert 'cannot go from' in line
  assert hlo.full_rematerialisations('noise') == []


def test_warnings_about_options_are_listed_once_without_log_prefixes():
  warning = 'Fusion is enabled on platform x, but it is not supported. Please use it at your own risk.'
  log = ''.join(f'W1127 03:46:0{i}.742412    574{i} flag_utils.cc:282] {warning}\nnoise\n' for i in range(3))
  assert hlo.warnings_of_options(log) == [warning]
  assert hlo.warnings_of_options('noise') == []


def test_text_without_an_entry_computation_is_refused():
  with pytest.raises(ValueError, match='no entry'):
    HloProgram('nothing')
