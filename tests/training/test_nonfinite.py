"""How the loop handles a batch that makes an update infinite or NaN, for each value of config.nonfinite."""

import numpy as np
import pytest

from dalle_jax.training.checkpoint import Checkpoints
from dalle_jax.training.loop import Hook, train
from dalle_jax.training.metrics_log import read_metrics
from dalle_jax.training.nonfinite import NonFiniteError, shown_records


@pytest.fixture
def fit(linear_task, stream, mesh, quiet):
  def run(workdir, config, poison=(), without=(), noise=0.1):
    """Train on a stream with NaNs in the batches `poison`, or on a stream that lacks the batches `without`."""
    batches = stream(poison=poison) if not without else Without(stream(), without)
    return train(linear_task(noise=noise), config, mesh=mesh, seed=3, workdir=workdir, batches=batches, logging=quiet)

  return run


class Without:
  """A stream that leaves out some batches of another stream."""

  def __init__(self, stream, numbers):
    self._stream, self._numbers = stream, numbers

  def __next__(self):
    while self._stream.position in self._numbers:
      next(self._stream)
    return next(self._stream)

  def __getattr__(self, name):
    return getattr(self._stream, name)


def lines(workdir, key):
  return [line[key] for line in read_metrics(workdir / 'metrics.jsonl') if key in line]


def test_stopping_lists_the_records_of_the_batch(fit, tmp_path, make_config):
  with pytest.raises(
    NonFiniteError, match=r'at step 7 .* Records of its batch: 6/0, 6/1, .*6/7\. .*nonfinite to skip or rewind'
  ):
    fit(tmp_path, make_config(), poison=(6,))


def test_skipping_an_update_changes_only_the_counts(fit, tmp_path, make_config, assert_trees_equal, capsys):
  # Noise and averages depend on the step. Without them, the run equals a run on data that lack the batches.
  config = make_config(nonfinite='skip', ema_decay=0.0, num_steps=12)
  state = fit(tmp_path / 'a', config, poison=(4, 6), noise=0.0)
  expected = fit(tmp_path / 'b', make_config(ema_decay=0.0, num_steps=10), without=(4, 6), noise=0.0)
  assert_trees_equal(state.params, expected.params)
  assert_trees_equal(state.opt_state, expected.opt_state)
  assert (int(state.step), int(state.skipped)) == (12, 2)
  assert lines(tmp_path / 'a', 'skipped_updates') == [0, 1, 2, 2]
  assert np.isfinite(lines(tmp_path / 'a', 'loss')).all() and len(lines(tmp_path / 'a', 'loss')) == 4
  messages = [line for line in capsys.readouterr().err.splitlines() if 'skipped' in line]
  assert (
    len(messages) == 2 and 'at step 5 ' in messages[0] and '4/0, 4/1' in messages[0] and 'at step 7 ' in messages[1]
  )


def test_halvings_are_reported_after_skipped_updates(fit, tmp_path, make_config, capsys):
  plateaus = {'schedule': 'plateau', 'plateau_window': 2, 'plateau_patience': 1, 'plateau_min_improvement': 1e3}
  config = make_config(nonfinite='skip', log_every=1, num_steps=14, max_halvings=3, checkpoint_every=5, **plateaus)
  fit(tmp_path / 'a', config, poison=(0, 1, 2, 6))
  messages = [line for line in capsys.readouterr().err.splitlines() if 'halved to' in line]
  assert [line.rpartition(' ')[2] for line in messages] == ['3', '5', '7']
  # A skipped update does not count towards a plateau: the rate depends only on the updates made.
  rates, skipped = lines(tmp_path / 'a', 'learning_rate'), lines(tmp_path / 'a', 'skipped_updates')
  made = [rate for rate, before, now in zip(rates, [0, *skipped], skipped, strict=False) if now == before]
  np.testing.assert_allclose(made, [0.05] * 3 + [0.025] * 2 + [0.0125] * 2 + [0.00625] * 3)
  np.testing.assert_allclose(rates[6], rates[5])


def test_an_interval_without_a_finite_step_has_no_loss(fit, tmp_path, make_config):
  fit(tmp_path, make_config(nonfinite='skip', log_every=2, num_steps=6), poison=(2, 3))
  assert [line['step'] for line in read_metrics(tmp_path / 'metrics.jsonl') if 'loss' not in line] == [4]


def test_skipping_more_updates_than_the_limit_is_an_error(fit, tmp_path, make_config):
  config = make_config(nonfinite='skip', max_nonfinite=2, checkpoint_every=5)
  assert int(fit(tmp_path / 'two', config, poison=(4, 6)).skipped) == 2
  with pytest.raises(NonFiniteError, match=r'More than config\.linear_training\.max_nonfinite=2 updates were skipped'):
    fit(tmp_path / 'three', config, poison=(4, 6, 8))
  with pytest.raises(NonFiniteError, match='More than'):  # a resumed run continues the count
    fit(tmp_path / 'three', config, poison=(4, 6, 8))


@pytest.mark.parametrize('poison', [(6,), (1, 6, 7)])
def test_rewinding_equals_a_run_without_the_batches(fit, tmp_path, make_config, assert_trees_equal, capsys, poison):
  state = fit(tmp_path / 'a', make_config(nonfinite='rewind'), poison=poison)
  messages = [line for line in capsys.readouterr().err.splitlines() if 'excluding batch' in line]
  assert len(messages) == len(poison) and 'excluding batch 6' in messages[poison.index(6)]
  assert_trees_equal(state, fit(tmp_path / 'b', make_config(), without=poison))
  assert lines(tmp_path / 'a', 'loss') == lines(tmp_path / 'b', 'loss')
  with Checkpoints(tmp_path / 'a' / 'checkpoints', 3) as checkpoints:
    assert checkpoints.steps() == [4, 8, 12]


def test_a_resumed_run_still_excludes_the_batches(fit, tmp_path, make_config, assert_trees_equal):
  fit(tmp_path / 'a', make_config(nonfinite='rewind', num_steps=8), poison=(2, 6))
  resumed = fit(tmp_path / 'a', make_config(nonfinite='rewind'), poison=(2, 6, 11))
  assert_trees_equal(resumed, fit(tmp_path / 'b', make_config(), without=(2, 6, 11)))


def test_excluding_more_batches_than_the_limit_is_an_error(fit, tmp_path, make_config):
  config = make_config(nonfinite='rewind', max_nonfinite=1)
  fit(tmp_path / 'one', config, poison=(6,))
  with pytest.raises(NonFiniteError, match='at step 8'):
    fit(tmp_path / 'two', config, poison=(6, 8))


@pytest.mark.parametrize('policy', ['skip', 'rewind'])
def test_a_stopped_run_continues_with_another_policy(fit, tmp_path, make_config, policy):
  with pytest.raises(NonFiniteError, match=r'nonfinite to skip or rewind\.'):
    fit(tmp_path, make_config(), poison=(6,))
  state = fit(tmp_path, make_config(nonfinite=policy), poison=(6,))
  assert (int(state.step), int(state.skipped)) == (12, int(policy == 'skip'))


def test_messages_depend_on_the_policy(fit, tmp_path, make_config, capsys):
  config = make_config(nonfinite='rewind', max_nonfinite=1)
  with pytest.raises(NonFiniteError, match=r'max_nonfinite=1 batches would .* raise that limit'):
    fit(tmp_path, config, poison=(6, 8))
  messages = [line for line in capsys.readouterr().err.splitlines() if 'Rewinding to' in line]
  assert len(messages) == 1 and 'The same command' not in messages[0]


def test_hooks_are_not_called_with_a_non_finite_state(linear_task, stream, mesh, quiet, tmp_path, make_config):
  hook_steps = []
  with pytest.raises(NonFiniteError, match='at step 4 '):
    train(
      linear_task(), make_config(eval_every=5, log_every=50), mesh=mesh, seed=0, workdir=tmp_path, logging=quiet,
      batches=stream(poison=(3,)), eval_batches=lambda: [next(stream())],
      hooks=[Hook(1, lambda state, step: hook_steps.append(step))],
    )  # fmt: skip
  assert hook_steps == [1, 2, 3]


def test_infinite_parameters_stop_a_run_with_policy_skip(fit, tmp_path, make_config):
  # The gradient is finite, but the learning rate makes the update infinite.
  config = make_config(nonfinite='skip', learning_rate=3e38, clip_norm=0.0, log_every=4, checkpoint_every=2)
  with pytest.raises(NonFiniteError, match=r'at step 1 .*which skipping cannot undo'):
    fit(tmp_path, config)
  with Checkpoints(tmp_path / 'checkpoints', 3) as checkpoints:
    assert checkpoints.steps() == []


def test_records_beyond_the_named_ones_are_counted():
  assert shown_records(['a', 'b'], 10) == 'a, b and 8 more'
  assert shown_records(['a', 'b'], 2) == 'a, b'
