import pytest

from dalle_jax.planning.estimate import Estimate, exchange_seconds
from dalle_jax.planning.hlo import Collective
from dalle_jax.planning.programs import Work
from dalle_jax.planning.topologies import parse

WORK = Work(examples=64, tokens=64 * 1280, num_params=10, model_flops=64 * 459e12)


def test_a_step_at_peak_throughput_has_utilisation_one():
  topology = parse('v5p:4x4x4')
  estimate = Estimate(1.0, 0.0, 0.0, WORK, topology, '')
  assert estimate.model_flops_utilisation == pytest.approx(1)
  assert estimate.tokens_per_second == 64 * 1280
  assert estimate.days(86_400) == 1
  assert estimate.chip_hours(3600) == 64


def test_overlapped_communication_counts_only_if_it_takes_longer_than_computation():
  topology = parse('v5p:4x4x4')
  assert Estimate(1.0, 0.5, 0.9, WORK, topology, '').step_seconds == 1.5
  assert Estimate(1.0, 0.5, 2.0, WORK, topology, '').step_seconds == 2.5


@pytest.mark.parametrize(
  ('name', 'group', 'bandwidth'),
  [
    ('v5p:4x4x4', 64, 6 * 90e9),
    ('v5p:4x4x4', 16, 4 * 90e9),
    ('v5p:4x4x8', 8, 2 * 90e9),
    ('v5e:16x16', 256, 4 * 45e9),
    ('v5e:16x16', 16, 2 * 45e9),
    ('h100:8', 8, 450e9),
  ],
)
def test_communication_time_is_bytes_over_the_bandwidth_of_the_spanned_links(name, group, bandwidth):
  collectives = [Collective('all-gather', group, is_async, 1, int(1e9)) for is_async in (False, True)]
  assert exchange_seconds(collectives, parse(name)) == pytest.approx((1e9 / bandwidth, 1e9 / bandwidth))
