"""Two runs never write into one directory: the lock, its heartbeat, and processes that died or were suspended."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from dalle_jax.jobs import run_lock
from dalle_jax.jobs.run_lock import Holder, RunLock

HOLDER = """
import pathlib, sys, time
from dalle_jax.jobs import run_lock
run_lock.BEAT_S, run_lock.STALE_S, run_lock._POLL_S = 0.1, 1.0, 0.05
with run_lock.hold(pathlib.Path(sys.argv[1])) as lock:
  print('held', flush=True)
  sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """A heartbeat every 0.1 seconds, and 1 second until a lock is stale."""
  for name, value in (('BEAT_S', 0.1), ('STALE_S', 1.0), ('_POLL_S', 0.05)):
    monkeypatch.setattr(run_lock, name, value)


@pytest.fixture
def start():
  """Starts processes that hold the lock of a directory until their input ends."""
  processes = []

  def start_holder(directory):
    process = subprocess.Popen(
      [sys.executable, '-c', HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    processes.append(process)
    assert process.stdout.readline() == 'held\n', process.stderr.read()
    return process

  yield start_holder
  for process in processes:
    process.kill()
    process.communicate()


def _lock(directory, said=None):
  """Take the lock in this process; messages go to the list `said`, the message of a lost lock to `lost`."""
  lost = []
  lock = RunLock(directory, on_lost=lost.append)
  lock.lost = lost
  lock.acquire((said if said is not None else []).append)
  return lock


def _write_foreign(directory, **changes):
  """Write the lock of a process on another host."""
  holder = dataclasses.replace(Holder.this_process(), host='elsewhere', machine='another', process=77, **changes)
  (directory / run_lock.FILE).write_bytes(holder.content())
  return holder


def test_the_file_names_the_process_and_is_removed_at_the_end_and_after_errors(tmp_path):
  with pytest.raises(KeyboardInterrupt), run_lock.hold(tmp_path / 'new' / 'run') as lock:
    values = json.loads(lock.path.read_text())
    assert values['process'] == os.getpid() and values['host'] and values['started'].endswith('UTC')
    raise KeyboardInterrupt
  assert list((tmp_path / 'new' / 'run').iterdir()) == []


def test_a_second_process_is_refused_by_name_before_it_touches_anything(tmp_path, start, monkeypatch):
  monkeypatch.setattr(run_lock, 'STALE_S', 60)
  process = start(tmp_path)
  with pytest.raises(ValueError) as error:
    _lock(tmp_path)
  message = str(error.value)
  assert f'Process {process.pid} on host ' in message and re.search(r'its last heartbeat was \d+ s ago', message)
  assert '--workdir' in message and f'kill {process.pid}' in message
  assert [file.name for file in tmp_path.iterdir()] == [run_lock.FILE]
  process.communicate('')
  assert process.returncode == 0
  _lock(tmp_path).release()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, start):
  process = start(tmp_path)
  process.kill()
  process.wait()
  said, begin = [], time.monotonic()
  lock = _lock(tmp_path, said)
  assert time.monotonic() - begin < 1 and f'Process {process.pid} left' in said[0]
  lock.release()


def test_a_later_process_with_the_same_id_does_not_keep_a_lock_alive(tmp_path):
  holder = Holder.this_process()
  assert holder.process_start.isdecimal()
  holder = dataclasses.replace(holder, clock=time.monotonic())
  (tmp_path / run_lock.FILE).write_bytes(dataclasses.replace(holder, process_start='1').content())
  _lock(tmp_path).release()
  (tmp_path / run_lock.FILE).write_bytes(holder.content())
  with pytest.raises(ValueError, match='is in use'):
    _lock(tmp_path)


def test_a_suspended_process_loses_the_lock_and_ends_without_writing(tmp_path, start):
  process = start(tmp_path)
  process.send_signal(signal.SIGSTOP)
  time.sleep(run_lock.STALE_S + 0.2)
  said = []
  lock = _lock(tmp_path, said)
  assert 'has had no heartbeat for' in said[0]
  process.send_signal(signal.SIGCONT)
  assert process.wait(timeout=20) == run_lock.EXIT_LOST
  assert f'error: This run lost its lock {lock.path}' in process.stderr.read()
  lock.confirm()
  assert not lock.lost
  lock.release()
  assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_suspended_while_another_ran_to_its_end_stops_too(tmp_path, start):
  process = start(tmp_path)
  process.send_signal(signal.SIGSTOP)
  time.sleep(run_lock.STALE_S + 0.2)
  _lock(tmp_path).release()
  process.send_signal(signal.SIGCONT)
  assert process.wait(timeout=20) == run_lock.EXIT_LOST
  assert 'The file is missing or damaged' in process.stderr.read()


def test_the_lock_of_a_dead_host_is_taken_over_after_waiting_whatever_its_clock_says(tmp_path):
  for clock in (0.0, 1e12):
    _write_foreign(tmp_path, clock=clock)
    said, begin = [], time.monotonic()
    lock = _lock(tmp_path, said)
    assert run_lock.STALE_S <= time.monotonic() - begin < run_lock.STALE_S + 1
    assert 'belongs to process 77 on host elsewhere. Waiting up to' in said[0]
    lock.release()


def test_a_heartbeat_on_another_host_refuses_the_start_whatever_its_clock_says(tmp_path):
  holder = _write_foreign(tmp_path, clock=0.0)
  timer = threading.Timer(0.3, lambda: _write_foreign(tmp_path, beat=1, token=holder.token))
  timer.start()
  begin = time.monotonic()
  with pytest.raises(ValueError, match=r'Process 77 on host elsewhere, started .* holds'):
    _lock(tmp_path)
  assert time.monotonic() - begin < run_lock.STALE_S


@pytest.mark.parametrize('content', [b'', b'{}', b'5', b'\xff' * 9, b'{"host": 3}', b'[' * 100_000])
def test_a_damaged_lock_is_watched_like_that_of_another_host(tmp_path, content):
  (tmp_path / run_lock.FILE).write_bytes(content)
  said = []
  run_lock.STALE_S = 0.2
  _lock(tmp_path, said).release()
  assert 'an unknown process (the file is damaged)' in said[0]


def test_a_lock_whose_heartbeat_was_seen_too_late_is_put_back(tmp_path):
  """The file changes between the last look at it and its renaming, as on a file system with cached reads."""
  old = _write_foreign(tmp_path).content()
  new = _write_foreign(tmp_path, beat=1).content()
  with pytest.raises(ValueError, match='is in use'):
    RunLock(tmp_path)._take_away(old)
  assert (tmp_path / run_lock.FILE).read_bytes() == new
  assert len(list(tmp_path.iterdir())) == 1


def test_of_many_processes_that_find_a_dead_lock_one_gets_it(tmp_path):
  _write_foreign(tmp_path)
  run_lock.STALE_S = 0.3
  locks, refused = [], []

  def take():
    try:
      locks.append(_lock(tmp_path))
    except ValueError as error:
      refused.append(str(error))

  threads = [threading.Thread(target=take) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  time.sleep(0.5)  # several heartbeats
  held = [lock for lock in locks if not lock.lost]
  assert len(held) == 1 and len(locks) + len(refused) == 8
  for lock in locks:
    lock.release()
  assert list(tmp_path.iterdir()) == []


def test_the_lock_works_on_a_file_system_without_links(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(os, 'link', fail)
  lock = _lock(tmp_path)
  with pytest.raises(ValueError, match='is in use'):
    _lock(tmp_path)
  lock.release()
  assert list(tmp_path.iterdir()) == []


def test_heartbeats_that_cannot_be_written_end_nothing(tmp_path, monkeypatch):
  lock = _lock(tmp_path)
  real = open

  def full(file, mode='r', **options):
    if mode == 'r+b' and file == lock.path:
      raise OSError(28, 'No space left on device')
    return real(file, mode, **options)

  with monkeypatch.context() as patch:
    patch.setattr('builtins.open', full)
    time.sleep(0.4)
    lock.confirm()
  time.sleep(0.4)
  assert not lock.lost and json.loads(lock.path.read_text())['beat'] > 0
  lock.release()


def test_a_sleeping_machine_is_noticed_before_the_next_write(tmp_path, monkeypatch):
  monkeypatch.setattr(run_lock, 'BEAT_S', 60)  # the thread does nothing yet
  lock = _lock(tmp_path)
  _write_foreign(tmp_path)
  lock.confirm()
  assert not lock.lost
  now = run_lock._clock()
  monkeypatch.setattr(run_lock, '_clock', lambda: now + 3600)
  lock.confirm()
  assert 'Process 77 on host elsewhere has it now' in lock.lost[0]


def test_the_lock_of_another_process_is_not_released(tmp_path, monkeypatch):
  monkeypatch.setattr(run_lock, 'BEAT_S', 60)  # the thread does nothing yet
  lock = _lock(tmp_path)
  content = _write_foreign(tmp_path).content()
  lock.release()
  assert lock.path.read_bytes() == content and len(list(tmp_path.iterdir())) == 1


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').touch()
  with (
    pytest.raises(ValueError, match=r'--workdir .*file/run cannot be made or written to'),
    run_lock.hold(tmp_path / 'file' / 'run'),
  ):
    pass
