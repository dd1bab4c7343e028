"""A run that resumes on one mesh after another; see `resume_on_meshes.py`."""

import pytest
from processes import report_of, run_on_eight_devices


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  return report_of(run_on_eight_devices('resume_on_meshes.py', tmp_path_factory.mktemp('meshes')))


def test_parameters_are_the_same_as_on_one_device(report):
  assert report['error'] < 1e-5


def test_losses_are_the_same_as_on_one_device_up_to_rounding(report):
  # Each run has three steps, so the interval of two steps before step 4, 10, ... is split between two runs.
  same = [step for step in report['expected'] if report['losses'].get(step) is not None and int(step) % 6 != 4]
  assert len(same) >= 3
  for step in same:
    assert report['losses'][step] == pytest.approx(report['expected'][step], rel=1e-5)


def test_each_mesh_has_the_expected_shard_sizes(report):
  assert [share for share, _ in report['shares']] == [16, 8, 16, 8]
