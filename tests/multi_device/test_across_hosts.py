"""Two hosts that hold the same batch rows and different shards of every array, against one; see `across_hosts.py`."""

import json
import pathlib

import pytest
from processes import Processes, free_port, with_devices

SCRIPT = pathlib.Path(__file__).with_name('across_hosts.py')
TIMEOUT_S = 240


@pytest.fixture(scope='module')
def outputs(tmp_path_factory):
  """The outputs of two hosts and of a single one."""
  directory, port = tmp_path_factory.mktemp('hosts'), free_port()
  two = [[SCRIPT, index, 2, port, directory / 'two'] for index in range(2)]
  environments = [{}, {}, {'XLA_FLAGS': with_devices(2)['XLA_FLAGS']}]
  processes = Processes([*two, [SCRIPT, 0, 1, 0, directory / 'one']], directory, environments)
  statuses, printed = processes.finish(TIMEOUT_S)
  assert statuses == [0, 0, 0], '\n'.join(printed)
  return printed


def test_hosts_with_the_same_rows_train_like_one_host(outputs):
  first, second, single = (json.loads(output.rpartition('RESULT')[2].splitlines()[0]) for output in outputs)
  assert first == second
  assert first['kernel'] == pytest.approx(single['kernel'], rel=1e-5)


def test_no_host_resumes_from_a_checkpoint_that_one_host_cannot_read(outputs):
  for output in outputs[:2]:
    assert 'checkpoints/4 cannot be restored' in output
  assert 'continuing from step 2' in outputs[0] and 'continuing from step 4' in outputs[2]
