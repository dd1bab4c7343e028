"""Programs that tests run in processes of their own: several hosts, other numbers of devices, runs to be killed."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Of the programs that tests start: they import this checkout and what is beside this file.
ENVIRONMENT = {
  **os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests" / "helpers"}',
}  # fmt: skip


PATIENCE_S = 900


def with_devices(count: int) -> dict[str, str]:
  """The environment in which a CPU is so many devices."""
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={count}'
  return ENVIRONMENT | {'XLA_FLAGS': flags}


def run_on_eight_devices(script: str, *arguments: object, timeout: float = 600) -> subprocess.CompletedProcess:
  """Runs tests/multi_device/SCRIPT; it must succeed."""
  command = [sys.executable, str(ROOT / 'tests' / 'multi_device' / script), *map(str, arguments)]
  finished = subprocess.run(command, env=with_devices(8), capture_output=True, text=True, timeout=timeout, check=False)
  assert finished.returncode == 0, finished.stderr
  return finished


def report_of(finished: subprocess.CompletedProcess) -> dict:
  """What it printed in its last line, as JSON."""
  return json.loads(finished.stdout.splitlines()[-1])


def free_port() -> int:
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


class Processes:
  """Programs of Python that run at one time; their outputs go to files, so that none waits for a reader."""

  def __init__(self, commands, directory, environments=None):
    directory.mkdir(parents=True, exist_ok=True)
    self.files = [directory / f'output_{i}.txt' for i in range(len(commands))]
    self.processes = []
    for command, file, own in zip(commands, self.files, environments or [{}] * len(commands), strict=True):
      command = [sys.executable, *map(str, command)]
      with file.open('w') as output:
        started = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | own, stdout=output, stderr=subprocess.STDOUT)
      self.processes.append(started)

  def finish(self, timeout=PATIENCE_S):
    """Exit statuses and outputs."""
    end = time.monotonic() + timeout
    try:
      statuses = [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
    finally:
      for process in self.processes:
        process.kill()  # nothing where it has ended
    return statuses, self.outputs()

  def outputs(self):
    return [file.read_text() for file in self.files]

  def wait_for(self, condition, poll_s=0.05):
    """Waits until `condition()`, which must come true before a process ends."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
      if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
        pytest.fail('\n'.join(self.outputs()))
      time.sleep(poll_s)

  def kill(self):
    """Ends the only process by SIGKILL."""
    (process,) = self.processes
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
