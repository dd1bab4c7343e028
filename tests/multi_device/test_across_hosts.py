"""Two hosts that share every row of a batch and each have a part of every array, against one; see `across_hosts.py`."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).with_name('across_hosts.py')
TIMEOUT_S = 240
pytestmark = pytest.mark.slow  # seen once, on a crowded machine, to wait for a host that had ended


@pytest.fixture(scope='module')
def outputs(tmp_path_factory):
  """What two hosts and a single one printed."""
  directory = tmp_path_factory.mktemp('hosts')
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests" / "helpers"}'}
  two_devices = {'XLA_FLAGS': os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=2'}
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = str(free.getsockname()[1])
  commands = [('0', '2', port, 'two'), ('1', '2', port, 'two'), ('0', '1', '0', 'one')]
  processes = [
    subprocess.Popen(
      [sys.executable, str(SCRIPT), index, count, port, str(directory / name)],
      env=environment | (two_devices if count == '1' else {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index, count, port, name in commands
  ]
  try:
    found = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()  # nothing where it has ended
  assert [process.returncode for process in processes] == [0, 0, 0], '\n'.join(found)
  return found


def test_hosts_with_the_same_rows_learn_what_one_host_does(outputs):
  first, second, single = (json.loads(output.rpartition('RESULT')[2]) for output in outputs)
  assert first == second
  assert first['kernel'] == pytest.approx(single['kernel'], rel=1e-5)


def test_what_one_host_cannot_read_none_continues_from(outputs):
  for output in outputs[:2]:
    assert 'checkpoints/4 cannot be restored' in output
  assert 'host 1 failed' in outputs[0]
  assert 'continuing from step 2' in outputs[0] and 'continuing from step 4' in outputs[2]
