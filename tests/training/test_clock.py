import pytest

from dalle_jax.training.clock import IntervalClock


class Time:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def test_time_is_counted_under_its_activity():
  time = Time()
  clock = IntervalClock(time)
  clock.restart(10)
  time.now += 5
  clock.add('data', 1.5)
  with clock.spent_on('evaluation'):
    time.now += 20
  with pytest.raises(OSError, match='full'), clock.spent_on('checkpoint'):
    time.now += 3
    raise OSError('full')
  spent, rate = clock.take(20)
  assert spent == {'time/data': 1.5, 'time/evaluation': 20, 'time/checkpoint': 3, 'time/pictures': 0, 'time/step': 3.5}
  assert rate == 2.0  # 10 steps in the 5 seconds outside other activities
  time.now += 1
  assert clock.take(21)[0]['time/evaluation'] == 0


def test_the_rate_is_zero_without_steps_or_without_time():
  time = Time()
  clock = IntervalClock(time)
  assert clock.take(5)[1] == 0.0  # steps, but no time
  time.now += 1
  assert clock.take(5)[1] == 0.0  # time, but no step
