import io
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_jax.training.progress import Progress, format_duration, format_rate


class Terminal(io.StringIO):
  def isatty(self):
    return True


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


def test_a_log_has_one_line_per_interval_and_a_last_line(clock):
  stream = io.StringIO()
  with Progress('fit', 100, interval_s=10, stream=stream, clock=clock) as progress:
    for done in range(1, 31):
      clock.now = float(done)
      progress.update(done, loss=1 / done)
  lines = stream.getvalue().splitlines()
  assert [line.split()[1] for line in lines] == ['1/100', '11/100', '21/100', '30/100']
  assert lines[1] == 'fit: 11/100 steps, 1.0 steps/s, 1m29s left, loss 0.09091'


def test_the_rate_ignores_time_before_the_first_update(clock):
  stream = io.StringIO()
  progress = Progress('fit', 20, interval_s=0, stream=stream, clock=clock)
  clock.now = 1000.0  # compiling
  progress.update(5)  # resumed at 4
  clock.now = 1002.0
  progress.update(9)
  assert stream.getvalue().splitlines()[-1] == 'fit: 9/20 steps, 2.0 steps/s, 6s left'


def test_a_log_does_not_repeat_a_line(clock):
  stream = io.StringIO()
  with Progress('draw', 8, 'image', interval_s=0, stream=stream, clock=clock) as progress:
    progress.update(8)
  assert stream.getvalue() == 'draw: 8/8 images\n'


def test_a_terminal_refreshes_one_line(clock):
  stream = Terminal()
  progress = Progress('fit', 4, 'image', stream=stream, clock=clock)
  for done in range(1, 5):
    clock.now += 1
    progress.update(done, psnr=20.0)
  progress.message('saved')
  progress.close()
  progress.close()
  text = stream.getvalue()
  assert text.count('\n') == 2  # after the message and after the bar
  screen = [line.split('\r')[-1] for line in text.split('\n')]
  assert screen[0] == 'fit: saved'
  assert screen[1] == f'fit [{"=" * 24}] 4/4 images, 1.0 images/s, 0s left, psnr 20'


def test_the_bar_refreshes_at_most_every_0_2_seconds(clock):
  stream = Terminal()
  progress = Progress('fit', 1000, stream=stream, clock=clock)
  for done in range(1, 101):
    clock.now += 0.01
    progress.update(done)
  assert 4 <= stream.getvalue().count('fit [') <= 6


def test_disabled_or_unused_progress_writes_nothing(clock):
  stream = Terminal()
  with Progress('fit', 10, stream=stream, clock=clock, enabled=False) as progress:
    progress.message('hello')
    progress.update(10)
  with Progress('fit', 10, stream=stream, clock=clock):
    pass
  assert stream.getvalue() == ''


@given(st.integers(0, 10**6))
def test_formatted_durations_round_down_to_their_smallest_unit(seconds):
  text = format_duration(seconds)
  units = {'h': 3600, 'm': 60, 's': 1}
  total, number = 0, ''
  for character in text:
    if character in units:
      total, number = total + int(number) * units[character], ''
    else:
      number += character
  smallest = units[text[-1]]
  assert 0 <= seconds - total < smallest
  assert len(text) <= 8


def test_slow_rates_are_shown_as_seconds_per_unit():
  assert format_rate(12.34, 'step') == '12.3 steps/s'
  assert format_rate(0.25, 'step') == '4.0 s/step'


def test_importing_progress_does_not_import_jax():
  code = "import sys, dalle_jax.training.progress; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, '-c', code], check=True)
