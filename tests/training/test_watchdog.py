"""The watchdog, with a clock of the test's own, and once with its thread."""

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


def test_a_stall_is_told_once_and_again_at_doubled_times(clock):
  watchdog, stream = _watchdog(clock)
  watchdog.tell('step', 7)
  told = []
  for _ in range(85):
    clock.now += 1
    if watchdog.check():
      told.append(clock.now - 100)
  assert told == [10, 20, 40, 80]
  first = stream.getvalue().splitlines()[0]
  assert first == (
    'host 3: prior: no step has been finished for 10 s, after step 7; doing: step, for 10 s. All threads:'
  )


def test_a_finished_step_starts_the_clock_anew_and_other_activities_do_not(clock):
  watchdog, stream = _watchdog(clock)
  for step in range(5):
    watchdog.tell('waiting for data', step)
    clock.now += 6
    assert not watchdog.check()
  watchdog.tell('checkpoint', 4)
  clock.now += 3
  assert not watchdog.check()
  watchdog.tell('evaluation', 4)
  clock.now += 2
  assert watchdog.check()
  assert 'for 11 s, after step 4; doing: evaluation, for 2 s' in stream.getvalue()
  watchdog.tell('step', 5)
  clock.now += 9
  assert not watchdog.check()
  clock.now += 1
  assert watchdog.check()  # at the first time again, not at the doubled one


def test_nothing_is_watched_with_zero_seconds(clock):
  watchdog, stream = _watchdog(clock, seconds=0.0)
  with watchdog:
    assert 'watchdog' not in [thread.name for thread in threading.enumerate()]
    clock.now += 1e6
    assert not watchdog.check()
  assert stream.getvalue() == ''


def test_its_thread_tells_where_the_others_stand_and_ends(clock):
  written = threading.Event()

  class Stream(io.StringIO):
    def flush(self):
      written.set()

  stream = Stream()
  with Watchdog('dvae', 0.02, stream=stream) as watchdog:
    watchdog.tell('waiting for data', 0)
    assert written.wait(30)
  assert 'thread MainThread:' in stream.getvalue()
  assert 'test_its_thread_tells_where_the_others_stand_and_ends' in stream.getvalue()
  assert 'doing: waiting for data' in stream.getvalue()
  assert 'watchdog' not in [thread.name for thread in threading.enumerate()]


def test_stderr_may_be_replaced_closed_or_absent(clock, monkeypatch):
  watchdog = Watchdog('prior', 10.0, clock=clock)
  closed = io.StringIO()
  closed.close()
  for step, stderr in enumerate((closed, None, io.StringIO())):
    monkeypatch.setattr(sys, 'stderr', stderr)
    watchdog.tell('step', step)
    clock.now += 10
    assert watchdog.check()
  assert 'no step has been finished' in sys.stderr.getvalue()


def test_it_ends_with_the_error_of_what_it_watches(clock):
  watchdog, _ = _watchdog(clock)
  with pytest.raises(RuntimeError, match='mine'), watchdog:
    raise RuntimeError('mine')
  assert 'watchdog' not in [thread.name for thread in threading.enumerate()]
