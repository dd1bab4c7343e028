"""A run that goes on on other meshes; see `resume_on_meshes.py`."""

import pytest
from processes import report_of, run_on_eight_devices


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  return report_of(run_on_eight_devices('resume_on_meshes.py', tmp_path_factory.mktemp('meshes')))


def test_it_learns_what_one_device_does_from_the_same_data(report):
  assert report['error'] < 1e-5


def test_losses_are_the_same_within_rounding(report):
  # Every third step ends a run and so an interval of two.
  same = [step for step in report['expected'] if report['losses'].get(step) is not None and int(step) % 6 != 4]
  assert len(same) >= 3
  for step in same:
    assert report['losses'][step] == pytest.approx(report['expected'][step], rel=1e-5)


def test_each_mesh_splits_the_parameters_its_own_way(report):
  assert [share for share, _ in report['shares']] == [16, 8, 16, 8]
