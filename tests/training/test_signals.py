import itertools
import os
import signal
import threading

import pytest

from dalle_jax.training import signals
from dalle_jax.training.signals import EXIT_INTERRUPTED, StopSignals, terminations_as_interrupts


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_handlers_are_restored(number):
  former = signal.getsignal(number)
  with StopSignals() as stop:
    assert not stop.stop_requested
    os.kill(os.getpid(), number)
    assert stop.stop_requested
    assert signal.getsignal(number) != former
  assert signal.getsignal(number) == former


@pytest.mark.parametrize('first', [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigint_raises_keyboard_interrupt(first):
  former = signal.getsignal(signal.SIGINT)
  with pytest.raises(KeyboardInterrupt), StopSignals():
    os.kill(os.getpid(), first)
    os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) == former


def test_a_second_sigterm_does_not_raise():
  with StopSignals() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
  assert stop.stop_requested


def test_stop_signals_does_nothing_outside_the_main_thread():
  former = signal.getsignal(signal.SIGINT)
  observed = []

  def work():
    with StopSignals() as stop:
      observed.append((signal.getsignal(signal.SIGINT) == former, stop.stop_requested))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert observed == [(True, False)]


def test_the_exit_status_differs_from_success_and_common_failures():
  assert EXIT_INTERRUPTED not in (0, 1, 2)


def test_sigterm_raises_keyboard_interrupt_unless_stop_signals_is_active():
  former = signal.getsignal(signal.SIGTERM)
  with terminations_as_interrupts(), StopSignals() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.stop_requested
  with pytest.raises(KeyboardInterrupt), terminations_as_interrupts():
    os.kill(os.getpid(), signal.SIGTERM)
  assert signal.getsignal(signal.SIGTERM) == former


def test_with_several_hosts_jax_handles_sigterm_and_decides_when_to_stop(monkeypatch):
  former, sent, counts = signal.getsignal(signal.SIGTERM), [], []
  monkeypatch.setattr(signals.os, 'kill', lambda pid, number: sent.append((pid, number)))

  def reached(count):
    counts.append(count)
    return len(counts) == 3

  with StopSignals(several_hosts=True) as stop, terminations_as_interrupts(several_hosts=True):
    assert signal.getsignal(signal.SIGTERM) == former
    signal.raise_signal(signal.SIGINT)
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert [stop.must_stop(reached) for _ in range(3)] == [False, False, True]
  with StopSignals(several_hosts=True) as stop:  # the next stage
    stop.must_stop(reached)
  assert [b - a for a, b in itertools.pairwise(counts)] == [1, 1, 1]


def test_a_single_host_does_not_ask_the_preemption_service():
  with StopSignals() as stop:
    assert not stop.must_stop(None)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.must_stop(None)
