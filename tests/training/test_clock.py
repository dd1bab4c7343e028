import pytest

from dalle_jax.training.clock import IntervalClock


class Time:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def test_time_falls_to_what_it_was_spent_on():
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
  assert rate == 2.0  # 10 steps in the 5 seconds that nothing else took
  time.now += 1
  assert clock.take(21)[0]['time/evaluation'] == 0


def test_no_step_and_no_time_are_no_rate():
  time = Time()
  clock = IntervalClock(time)
  assert clock.take(5)[1] == 0.0  # steps in no time at all
  time.now += 1
  assert clock.take(5)[1] == 0.0  # time without a step
