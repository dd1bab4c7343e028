"""Tests of the watchdog with a simulated clock, and of its thread."""

import io
import sys
import threading

import pytest

from dalle_jax.training.watchdog import Watchdog


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


def _watchdog(clock, seconds=10.0):
  stream = io.StringIO()
  return Watchdog('prior', seconds, 3, stream=stream, clock=clock), stream


def test_a_stall_is_reported_at_doubling_intervals(clock):
  watchdog, stream = _watchdog(clock)
  watchdog.set_activity('step', 7)
  reported = []
  for _ in range(85):
    clock.now += 1
    if watchdog.check():
      reported.append(clock.now - 100)
  assert reported == [10, 20, 40, 80]
  first = stream.getvalue().splitlines()[0]
  assert first == (
    'host 3: prior: no step has finished for 10 s (last finished step: 7). '
    'Current activity: step, for 10 s. Stacks of all threads:'
  )


def test_a_finished_step_restarts_the_timer_and_other_activities_do_not(clock):
  watchdog, stream = _watchdog(clock)
  for step in range(5):
    watchdog.set_activity('waiting for data', step)
    clock.now += 6
    assert not watchdog.check()
  watchdog.set_activity('checkpoint', 4)
  clock.now += 3
  assert not watchdog.check()
  watchdog.set_activity('evaluation', 4)
  clock.now += 2
  assert watchdog.check()
  assert 'for 11 s (last finished step: 4). Current activity: evaluation, for 2 s' in stream.getvalue()
  watchdog.set_activity('step', 5)
  clock.now += 9
  assert not watchdog.check()
  clock.now += 1
  assert watchdog.check()  # after 10 s again, not after the doubled time


def test_zero_seconds_disable_the_watchdog(clock):
  watchdog, stream = _watchdog(clock, seconds=0.0)
  with watchdog:
    assert 'watchdog' not in [thread.name for thread in threading.enumerate()]
    clock.now += 1e6
    assert not watchdog.check()
  assert stream.getvalue() == ''


def test_the_thread_prints_the_stacks_of_other_threads_and_ends(clock):
  written = threading.Event()

  class Stream(io.StringIO):
    def flush(self):
      written.set()

  stream = Stream()
  with Watchdog('dvae', 0.02, stream=stream) as watchdog:
    watchdog.set_activity('waiting for data', 0)
    assert written.wait(30)
  assert 'thread MainThread:' in stream.getvalue()
  assert 'test_the_thread_prints_the_stacks_of_other_threads_and_ends' in stream.getvalue()
  assert 'Current activity: waiting for data' in stream.getvalue()
  assert 'watchdog' not in [thread.name for thread in threading.enumerate()]


def test_stderr_may_be_replaced_closed_or_missing(clock, monkeypatch):
  watchdog = Watchdog('prior', 10.0, clock=clock)
  closed = io.StringIO()
  closed.close()
  for step, stderr in enumerate((closed, None, io.StringIO())):
    monkeypatch.setattr(sys, 'stderr', stderr)
    watchdog.set_activity('step', step)
    clock.now += 10
    assert watchdog.check()
  assert 'no step has finished' in sys.stderr.getvalue()


def test_an_error_in_the_watched_code_ends_the_thread(clock):
  watchdog, _ = _watchdog(clock)
  with pytest.raises(RuntimeError, match='mine'), watchdog:
    raise RuntimeError('mine')
  assert 'watchdog' not in [thread.name for thread in threading.enumerate()]
