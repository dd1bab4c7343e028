"""Runs programs in separate processes, for tests with several hosts or devices and for runs that are killed."""

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
# Environment of the programs: they can import this checkout and the modules beside this file.
ENVIRONMENT = {
  **os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests" / "helpers"}',
}  # fmt: skip
PATIENCE_S = 900  # seconds until a program that has not finished fails the test


def with_devices(count: int) -> dict[str, str]:
  """An environment in which JAX splits the CPU into `count` devices."""
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={count}'
  return ENVIRONMENT | {'XLA_FLAGS': flags}


def run_on_eight_devices(script: str, *arguments: object, timeout: float = 600) -> subprocess.CompletedProcess:
  """Runs tests/multi_device/SCRIPT with eight devices and checks that it succeeds."""
  command = [sys.executable, str(ROOT / 'tests' / 'multi_device' / script), *map(str, arguments)]
  finished = subprocess.run(command, env=with_devices(8), capture_output=True, text=True, timeout=timeout, check=False)
  assert finished.returncode == 0, finished.stderr
  return finished


def report_of(finished: subprocess.CompletedProcess) -> dict:
  """The last line of a program's output, parsed as JSON."""
  return json.loads(finished.stdout.splitlines()[-1])


def free_port() -> int:
  """A TCP port that is free now."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


class Processes:
  """Python programs that run at the same time. They write to files, so that none blocks on a full pipe."""

  def __init__(self, commands, directory, environments=None):
    directory.mkdir(parents=True, exist_ok=True)
    self.files = [directory / f'output_{i}.txt' for i in range(len(commands))]
    self.processes = []
    for command, file, extra in zip(commands, self.files, environments or [{}] * len(commands), strict=True):
      command = [sys.executable, *map(str, command)]
      with file.open('w') as output:
        started = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | extra, stdout=output, stderr=subprocess.STDOUT)
      self.processes.append(started)

  def finish(self, timeout=PATIENCE_S):
    """Waits for all programs and returns their exit statuses and outputs."""
    end = time.monotonic() + timeout
    try:
      statuses = [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
    finally:
      for process in self.processes:
        process.kill()  # no effect on a process that has ended
    return statuses, self.outputs()

  def outputs(self):
    """What each program has printed so far."""
    return [file.read_text() for file in self.files]

  def wait_for(self, condition, poll_s=0.05):
    """Waits until `condition()` is true; the test fails if a process ends first."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
      if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
        pytest.fail('\n'.join(self.outputs()))
      time.sleep(poll_s)

  def kill(self):
    """Kills the only process with SIGKILL."""
    (process,) = self.processes
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
