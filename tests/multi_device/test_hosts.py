"""The same command on two hosts, here two processes of one machine, against one."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from dalle_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, '-m', 'dalle_jax.train', '--config=configs/quickstart.py:tiny', '--stop_after=prior']


def _start(workdir, *arguments):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
  command = [*COMMAND, f'--workdir={workdir}', *arguments]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(*processes):
  outputs = [process.communicate(timeout=600)[0] for process in processes]
  assert [process.returncode for process in processes] == [0] * len(processes), '\n'.join(outputs)
  return outputs


@pytest.mark.slow
def test_two_hosts_train_what_one_does(tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    coordinator = f'--coordinator=localhost:{free.getsockname()[1]}'
  hosts = ['--distributed', coordinator, '--num_hosts=2']
  outputs = _finish(*(_start(tmp_path / 'two', *hosts, f'--host_index={i}') for i in range(2)))
  assert '2 host(s)' in outputs[0] and '2 host(s)' not in outputs[1]
  _finish(_start(tmp_path / 'one'))
  for stage in ('dvae', 'prior'):
    losses = [
      [line[name] for line in read_metrics(tmp_path / run / stage / 'metrics.jsonl') for name in line if 'loss' in name]
      for run in ('one', 'two')
    ]
    assert len(losses[0]) >= 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
  assert (tmp_path / 'two' / 'model' / 'bundle.json').exists()
