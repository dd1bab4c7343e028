import json

import jax
import numpy as np
import pytest
from runs import learnt
from toy_training import QUIET, LinearTask, Stream

from dalle_jax.training.bad_records import BadDataError, BadRecords, LeftOutError
from dalle_jax.training.checkpoint import Checkpoints
from dalle_jax.training.loop import train
from dalle_jax.training.metrics_log import read_metrics


class Replaced(Stream):
  """The stream of the toy task, in which the rows in `bad` (batch -> number of rows) were replaced."""

  def __init__(self, bad, limit=99, gone=None):
    super().__init__()
    self.bad, self.limit, self.gone = bad, limit, gone

  def __next__(self):
    if self.position == self.gone:
      raise ValueError('None of the records can be read.')
    return super().__next__()

  def replaced(self):
    return np.arange(self.batch_size) < self.bad.get(self.position - 1, 0)

  def most_replaced(self, num_batches):
    return self.limit

  def bad_names(self):
    return ['a.png', 'b.png']


@pytest.fixture
def fit(mesh, make_config):
  def run(workdir, batches, num_steps=12, **options):
    config = make_config(num_steps=num_steps, checkpoint_every=5, log_every=3, **options.pop('config', {}))
    return train(
      LinearTask(noise=0.1), config, mesh=mesh, seed=3, workdir=workdir, batches=batches, logging=QUIET, **options
    )

  return run


def _counts(workdir):
  return {v['step']: v['bad_records'] for v in read_metrics(workdir / 'metrics.jsonl') if 'bad_records' in v}


BAD = {0: 1, 4: 2, 5: 3, 11: 1}


def test_replaced_rows_are_counted_up_to_each_step(fit, tmp_path):
  fit(tmp_path, Replaced(BAD))
  assert _counts(tmp_path) == {3: 1, 6: 6, 9: 6, 12: 7}


def test_a_run_over_the_limit_saves_its_state_and_continues_when_the_data_are_mended(fit, tmp_path, assert_trees_equal):
  with pytest.raises(ValueError, match=r'3 records of the last 5 batches.*at most 2.*a\.png, b\.png.*step 5 is in'):
    fit(tmp_path / 'parts', Replaced(BAD, limit=2))
  state = fit(tmp_path / 'parts', Replaced({}, limit=2))  # the count so far does not end the run again
  whole = fit(tmp_path / 'whole', Replaced({0: 1, 4: 2}))
  assert_trees_equal(state, whole)
  assert learnt(tmp_path / 'parts') == learnt(tmp_path / 'whole')
  assert _counts(tmp_path / 'parts') == {3: 1, 6: 3, 9: 3, 12: 3}


def test_a_run_that_stays_over_the_limit_ends_again_and_names_the_limit_key(fit, tmp_path):
  for end in (5, 6):
    with pytest.raises(ValueError, match=rf'step {end} is in .*config\.data\.max_bad_share'):
      fit(tmp_path, Replaced(BAD, limit=2))
  fit(tmp_path, Replaced(BAD, limit=99))
  assert _counts(tmp_path)[12] == 7


def test_a_run_without_readable_records_saves_the_last_step(fit, tmp_path, assert_trees_equal):
  with pytest.raises(ValueError, match=r'None of the records can be read\. The checkpoint of step 7 is in'):
    fit(tmp_path / 'parts', Replaced(BAD, gone=7))
  assert_trees_equal(fit(tmp_path / 'parts', Replaced(BAD)), fit(tmp_path / 'whole', Replaced(BAD)))
  assert learnt(tmp_path / 'parts') == learnt(tmp_path / 'whole')
  with pytest.raises(ValueError, match='No checkpoint has been written'):
    fit(tmp_path / 'none', Replaced(BAD, gone=0))


def test_an_evaluation_that_meets_bad_records_is_made_again_without_them(fit, tmp_path):
  passes = []

  def evaluation():
    passes.append(len(passes))
    yield next(Stream(seed=passes[-1]))
    if len(passes) < 3:
      raise LeftOutError(len(passes))

  fit(tmp_path, Stream(), num_steps=2, eval_batches=evaluation, config={'eval_every': 1})
  lines = [v for v in read_metrics(tmp_path / 'metrics.jsonl') if 'eval/loss' in v]
  assert len(passes) == 4 and [line['eval/left_out_records'] for line in lines] == [2, 2]


def test_too_many_bad_held_out_records_end_the_run_after_a_checkpoint(fit, tmp_path):
  def evaluation():
    yield next(Stream())
    raise BadDataError('3 of 9 held-out records cannot be read.')

  with pytest.raises(ValueError, match=r'3 of 9 held-out .* The checkpoint of step 2 is in'):
    fit(tmp_path, Stream(), eval_batches=evaluation, config={'eval_every': 2})
  with Checkpoints(tmp_path / 'checkpoints', 1) as checkpoints:
    assert checkpoints.steps() == [2]


def test_the_state_of_a_count_goes_through_json(mesh):
  counts = BadRecords(mesh)
  counts.add(np.array([True, False, True]))
  counts.add(np.array([True, False, False]))
  with pytest.raises(BadDataError):
    counts.check(counts.total(), 2, Replaced({}, limit=2))
  other = BadRecords(mesh)
  other.restore(json.loads(json.dumps(counts.state())))
  assert int(other.total()) == 3 and other.forgiven == (3, 2)
  other.check(5, 3, Replaced({}, limit=2))
  with pytest.raises(BadDataError, match='3 records of the last 1 batches'):
    other.check(6, 3, Replaced({}, limit=2))


def test_counts_of_several_hosts_are_summed_over_the_rows_of_the_global_batch(mesh, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)  # one process holds all rows, as each would with `tensor`
  counts = BadRecords(mesh)
  for _ in range(2):
    counts.add(np.array([True, False, True, False]))
  assert int(counts.total()) == 4 and int(counts.total()) == 4
