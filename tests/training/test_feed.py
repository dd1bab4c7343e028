import numpy as np
import pytest

from dalle_jax.training.feed import Feed


def positions(feed, count):
  pairs = []
  for _ in range(count):
    feed.next()
    pairs.append((feed.position['position'], feed.num_read))
    feed.prepare()
  return pairs


def test_the_position_is_that_of_the_last_returned_batch(stream, mesh):
  feed = Feed(stream(), mesh)
  assert feed.position == feed.start == {'position': 0}
  assert positions(feed, 3) == [(1, 1), (2, 2), (3, 3)]  # although one more batch is read each time


def test_the_feed_returns_the_batches_of_the_stream(stream, mesh):
  feed, source = Feed(stream(), mesh), stream()
  for _ in range(3):
    np.testing.assert_array_equal(feed.next()['x'], next(source)['x'])


def test_excluded_batches_are_left_out(stream, mesh):
  feed, source = Feed(stream(), mesh), stream()
  feed.restore({'position': 0}, 0, {3, 1, 2})
  expected = [batch for number, batch in enumerate(next(source) for _ in range(6)) if number not in (1, 2, 3)]
  for batch in expected:
    np.testing.assert_array_equal(feed.next()['x'], batch['x'])
  assert feed.num_read == 6 and feed.excluded == (1, 2, 3)
  assert [feed.number_of(step) for step in (1, 2, 3)] == [0, 4, 5]
  assert feed.shown_records(2, 10).startswith('4/0, ') and feed.shown_records(2, 10).endswith('4/7 and 2 more')


def test_a_feed_continues_at_the_position_of_another(stream, mesh):
  first = Feed(stream(), mesh)
  first.restore({'position': 0}, 0, {1})
  positions(first, 3)
  second = Feed(stream(), mesh)
  second.restore(first.position, first.num_read, first.excluded)
  first.restore(first.position, first.num_read, first.excluded)
  np.testing.assert_array_equal(first.next()['x'], second.next()['x'])


def test_the_end_of_the_stream_is_an_error(stream, mesh):
  class Short(stream):
    def __next__(self):
      if self.position == 2:
        raise StopIteration
      return super().__next__()

  feed = Feed(Short(), mesh)
  feed.next(), feed.next()
  with pytest.raises(ValueError, match='ended after 2 batches'):
    feed.next()
