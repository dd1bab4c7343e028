"""Evaluation figures on eight devices and on one; see `compare_evaluations.py`."""

import pytest
from processes import report_of, run_on_eight_devices


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  return report_of(run_on_eight_devices('compare_evaluations.py', tmp_path_factory.mktemp('evaluations')))


def test_generated_tokens_are_the_same_on_eight_devices(report):
  assert report['wrong_tokens'] == 0
  assert report['num_codes'] > 4


def test_figures_are_the_same_on_eight_devices_up_to_rounding(report):
  one, all_devices = report['one'], report['all']
  assert (one['devices'], all_devices['devices']) == ('1 x cpu', '8 x cpu')
  assert one['figures'].keys() == all_devices['figures'].keys()
  for name, figure in one['figures'].items():
    for key, value in figure.items():
      other = all_devices['figures'][name][key]
      assert other == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)), (name, key)
