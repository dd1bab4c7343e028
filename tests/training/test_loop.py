import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from runs import learnt

from dalle_jax import hardware
from dalle_jax.training import loop, monitors
from dalle_jax.training.checkpoint import Checkpoints
from dalle_jax.training.checkpoint_format import FORMAT_VERSION
from dalle_jax.training.loop import Hook, train
from dalle_jax.training.metrics_log import read_metrics
from dalle_jax.training.nonfinite import NonFiniteError
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.signals import Interrupted
from dalle_jax.training.state import abstract_state


@pytest.fixture
def fit(linear_task, stream, mesh, quiet):
  """Call train() on the noisy toy task; return the state and the stream."""

  def run(workdir, config, *, task=None, batches=None, **kwargs):
    batches = batches or stream()
    kwargs = {'mesh': mesh, 'seed': 3, 'logging': quiet} | kwargs
    return train(task or linear_task(noise=0.1), config, workdir=workdir, batches=batches, **kwargs), batches

  return run


def _steps(workdir, key='loss'):
  return [values['step'] for values in read_metrics(workdir / 'metrics.jsonl') if key in values]


def _held_out(stream):
  def batches():
    source = stream(seed=9)
    return [next(source), next(source)]

  return batches


def test_training_fits_one_batch(fit, tmp_path, make_config, linear_task, stream):
  config = make_config(num_steps=400, log_every=100, checkpoint_every=0, b2=0.99)
  fit(tmp_path, config, task=linear_task(), batches=stream(fixed=True))
  losses = [values['loss'] for values in read_metrics(tmp_path / 'metrics.jsonl')]
  assert losses[-1] < 1e-3 < 1 < losses[0]


HALVING = {
  'schedule': 'plateau', 'plateau_window': 2, 'plateau_patience': 1, 'plateau_min_improvement': 1e3, 'ema_every': 2,
  'second_moment_clip': 0.01,
}  # fmt: skip


@pytest.mark.parametrize('recipe', [{}, HALVING], ids=['plain', 'halving'])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
  fit, tmp_path, make_config, assert_trees_equal, stream, recipe
):
  config = make_config(eval_every=6, **recipe)
  whole, whole_stream = fit(tmp_path / 'whole', config, eval_batches=_held_out(stream))

  def interrupt(state, step):
    os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Interrupted, match='step 5 of 12'):
    fit(tmp_path / 'parts', config, eval_batches=_held_out(stream), hooks=[Hook(5, interrupt)])
  resumed, resumed_stream = fit(tmp_path / 'parts', config, eval_batches=_held_out(stream))
  assert_trees_equal(resumed, whole)
  assert resumed_stream.state() == whole_stream.state() == {'position': 12}
  assert _steps(tmp_path / 'parts') == [3, 6, 9, 12]
  assert _steps(tmp_path / 'parts', 'eval/loss') == [6, 12]
  assert learnt(tmp_path / 'parts') == learnt(tmp_path / 'whole')  # including the interval that the stop cut in two


def test_a_stop_request_during_the_last_save_is_not_lost(fit, tmp_path, make_config, monkeypatch):
  wait = Checkpoints.wait_until_finished

  def interrupted(checkpoints):
    os.kill(os.getpid(), signal.SIGTERM)
    wait(checkpoints)

  monkeypatch.setattr(Checkpoints, 'wait_until_finished', interrupted)
  with pytest.raises(Interrupted, match='step 12 of 12'):
    fit(tmp_path, make_config())


def test_the_watchdog_tells_waiting_for_data_from_waiting_for_devices(fit, tmp_path, make_config, monkeypatch, stream):
  """Waiting for the devices must count as 'step'. Otherwise a host that hangs in a collective would blame its data."""
  activities, waits = [''], []

  class Watched(monitors.Watchdog):
    def set_activity(self, activity, step):
      activities.append(activity)

  class WatchedStream(stream):
    def __next__(self):
      waits.append(('data', activities[-1]))
      return super().__next__()

  wait = jax.block_until_ready
  monkeypatch.setattr(monitors, 'Watchdog', Watched)
  monkeypatch.setattr(
    loop.jax, 'block_until_ready', lambda tree: waits.append(('devices', activities[-1])) or wait(tree)
  )
  fit(tmp_path, make_config(checkpoint_every=0), batches=WatchedStream())
  assert {activity for kind, activity in waits if kind == 'devices'} <= {'step', 'compiling'}
  assert {activity for kind, activity in waits[2:] if kind == 'data'} == {'waiting for data'}
  assert len([kind for kind, _ in waits if kind == 'devices']) >= 8


def test_each_halving_is_reported_once(fit, tmp_path, make_config, assert_trees_equal, capsys):
  config = make_config(**HALVING, log_every=1, max_halvings=2, num_steps=8)

  def halving_messages():
    return [line for line in capsys.readouterr().err.splitlines() if 'halved' in line]

  whole, _ = fit(tmp_path / 'whole', config)
  lines = halving_messages()
  assert lines == [
    'linear: the learning rate was halved to 0.025 after step 3',
    'linear: the learning rate was halved to 0.0125 after step 5',
  ]
  with pytest.raises(Interrupted):
    fit(tmp_path / 'parts', config, hooks=[Hook(3, lambda state, step: os.kill(os.getpid(), signal.SIGTERM))])
  resumed, _ = fit(tmp_path / 'parts', config)
  assert halving_messages() == lines
  assert_trees_equal(resumed, whole)
  metrics = read_metrics(tmp_path / 'parts' / 'metrics.jsonl')
  np.testing.assert_allclose([m['learning_rate'] for m in metrics], [0.05] * 3 + [0.025] * 2 + [0.0125] * 3, rtol=1e-6)
  assert 'halved_after' not in metrics[0]


def test_halvings_at_given_steps_are_reported(fit, tmp_path, make_config, capsys):
  fit(tmp_path, make_config(schedule='steps', halving_steps=(4, 7), log_every=5, num_steps=10))
  text = capsys.readouterr().err
  assert 'halved to 0.025 after step 4' in text and 'halved to 0.0125 after step 7' in text
  assert text.count('halved') == 2


def test_steps_lost_in_a_crash_are_repeated_exactly(fit, tmp_path, make_config, assert_trees_equal):
  def crash(state, step):
    raise OSError('power cut')

  config = make_config(log_every=1, num_steps=10)
  with pytest.raises(OSError, match='power cut'):
    fit(tmp_path / 'parts', config, hooks=[Hook(7, crash)])
  assert _steps(tmp_path / 'parts') == [1, 2, 3, 4, 5, 6, 7]
  resumed, _ = fit(tmp_path / 'parts', config)
  whole, _ = fit(tmp_path / 'whole', config)
  assert_trees_equal(resumed, whole)
  assert _steps(tmp_path / 'parts') == list(range(1, 11))
  assert learnt(tmp_path / 'parts') == learnt(tmp_path / 'whole')


def test_a_checkpoint_holds_the_state_at_its_step(fit, tmp_path, make_config, assert_trees_equal, linear_task, mesh):
  states = {}
  # The asynchronous write must not see the buffers that later steps reuse.
  hook = Hook(4, lambda state, step: states.update({step: jax.tree.map(np.array, state)}))
  config = make_config()
  fit(tmp_path, config, hooks=[hook])
  with Checkpoints(tmp_path / 'checkpoints', 3) as checkpoints:
    abstract = abstract_state(linear_task(), make_optimizer(config), mesh, True)
    for step in (4, 8, 12):
      restored = checkpoints.restore(step, abstract)
      assert_trees_equal(restored.state, states[step])
      assert restored.data == {'position': step}


def test_a_finished_run_returns_at_once(fit, tmp_path, make_config, assert_trees_equal, stream):
  config = make_config()
  first, _ = fit(tmp_path, config)
  lines = (tmp_path / 'metrics.jsonl').read_text()
  again, untouched = fit(tmp_path, config, hooks=[Hook(1, lambda state, step: pytest.fail('trained again'))])
  assert_trees_equal(first, again)
  assert untouched.state() == {'position': 0}
  assert (tmp_path / 'metrics.jsonl').read_text() == lines


def test_nan_is_reported_and_the_last_good_checkpoint_stays(fit, tmp_path, make_config, stream):
  config = make_config(num_steps=20, log_every=5, checkpoint_every=4)
  with pytest.raises(NonFiniteError) as error:
    fit(tmp_path, config, batches=stream(poison=(6,)))
  message = str(error.value)
  assert 'non-finite at step 7 ' in message
  assert 'steps 6 to 8' in message  # the checkpoint due at step 8 was not written
  assert 'loss=nan' in message and 'last good checkpoint is step 4' in message
  with Checkpoints(tmp_path / 'checkpoints', 3) as checkpoints:
    assert checkpoints.steps() == [4]
  resumed, _ = fit(tmp_path, config)
  assert int(resumed.step) == 20


def test_nan_is_detected_at_a_log_line_if_checkpoints_are_off(fit, tmp_path, make_config, stream):
  config = make_config(num_steps=20, log_every=3, checkpoint_every=0)
  with pytest.raises(NonFiniteError, match=r'at step 2 .*steps 1 to 3.*No checkpoint has been written to '):
    fit(tmp_path, config, batches=stream(poison=(1,)))


def test_evaluation_uses_averaged_parameters_and_records_the_best_loss(
  fit, tmp_path, make_config, stream, linear_task, mesh
):
  config = make_config(num_steps=6, eval_every=3, checkpoint_every=3)
  state, _ = fit(tmp_path, config, task=linear_task(), eval_batches=_held_out(stream))
  lines = [values for values in read_metrics(tmp_path / 'metrics.jsonl') if 'eval/loss' in values]
  squares = []
  for batch in _held_out(stream)():
    model = jax.tree.map(np.asarray, state.ema['model'])
    squares.append((batch['x'] @ model['kernel'] + model['bias'] + 0.5 - batch['y']) ** 2)
  np.testing.assert_allclose(lines[-1]['eval/loss'], np.mean(squares), rtol=1e-5)
  assert [values['eval/step'] for values in lines] == [3, 6]
  with Checkpoints(tmp_path / 'checkpoints', 3) as checkpoints:
    restored = checkpoints.restore_latest(abstract_state(linear_task(), make_optimizer(config), mesh, True))
  assert restored.meta['history'] == {'best_loss': lines[-1]['eval/loss'], 'best_step': 6}


def test_hooks_run_at_their_interval_and_after_the_last_step(fit, tmp_path, make_config):
  calls = []
  hooks = [
    Hook(4, lambda state, step: calls.append(('every', step, int(state.step)))),
    Hook(0, lambda state, step: calls.append(('last', step, int(state.step))), last=True),
    Hook(0, lambda state, step: calls.append(('never', step, 0))),
  ]
  fit(tmp_path, make_config(num_steps=10), hooks=hooks)
  assert calls == [('every', 4, 4), ('every', 8, 8), ('last', 10, 10)]


def test_logged_metrics_are_means_since_the_previous_line(fit, tmp_path, make_config, linear_task, stream):
  fit(tmp_path, make_config(num_steps=5, log_every=3), task=linear_task())
  source = stream()
  means = [next(source)['x'].mean() for _ in range(5)]
  lines = read_metrics(tmp_path / 'metrics.jsonl')
  assert [values['step'] for values in lines] == [3, 5]
  np.testing.assert_allclose([v['mean_x'] for v in lines], [np.mean(means[:3]), np.mean(means[3:])], rtol=1e-5)
  assert all({'loss', 'grad_norm', 'param_norm', 'learning_rate', 'steps_per_second'} <= set(v) for v in lines)
  np.testing.assert_allclose(lines[1]['examples_per_second'], 8 * lines[1]['steps_per_second'])


def test_initial_parameters_enter_the_state_and_the_description_enters_checkpoints(fit, tmp_path, make_config):
  initial = {'offset': {'value': np.array([7.0, 8.0], np.float32)}}
  state, _ = fit(tmp_path, make_config(num_steps=2), initial=initial, about={'note': 'x'})
  np.testing.assert_array_equal(state.frozen['offset']['value'], [7, 8])
  meta = json.loads((tmp_path / 'checkpoints' / '2' / 'meta' / 'metadata').read_text())
  assert meta['description'] == {'note': 'x'} and meta['format_version'] == FORMAT_VERSION


def test_too_little_training_data_is_an_error(fit, tmp_path, make_config, stream):
  class Short(stream):
    def __next__(self):
      if self.position == 3:
        raise StopIteration
      return super().__next__()

  with pytest.raises(ValueError, match='ended after 3 batches'):
    fit(tmp_path, make_config(), batches=Short())


def test_a_checkpoint_of_another_model_is_refused(fit, tmp_path, make_config):
  fit(tmp_path, make_config(num_steps=4))
  with pytest.raises(
    ValueError, match=r"cannot continue from the checkpoint .*\['ema'\]\['model'\]\['bias'\]: given float32\[2\], "
  ):
    fit(tmp_path, make_config(num_steps=8, ema_decay=0.0))


def test_log_lines_hold_time_by_activity_and_model_flops_utilisation(
  fit, tmp_path, make_config, monkeypatch, linear_task
):
  chip = hardware.Chip('toy', peak_flops=1e6, memory=0)
  monkeypatch.setattr(hardware, 'chip', lambda kind: chip)
  fit(tmp_path, make_config(checkpoint_every=4), hooks=[Hook(4, lambda state, step: time.sleep(0.05))])
  lines = read_metrics(tmp_path / 'metrics.jsonl')
  assert all({'time/step', 'time/data', 'time/checkpoint', 'time/evaluation', 'time/pictures'} <= set(v) for v in lines)
  assert [values['time/pictures'] >= 0.05 for values in lines] == [False, True, True, False]
  flops = 8 * (2 * 3 * 2) * 2  # the product and the gradient of its kernel; the data need no gradient
  for values in lines:
    np.testing.assert_allclose(values['model_flops_utilisation'], values['steps_per_second'] * flops / 1e6)


def test_compilation_does_not_enter_the_rate_when_every_step_is_logged(fit, tmp_path, make_config):
  fit(tmp_path, make_config(num_steps=3, log_every=1))
  lines = read_metrics(tmp_path / 'metrics.jsonl')
  assert ['steps_per_second' in values for values in lines] == [False, True, True]
  assert lines[0]['time/step'] < 0.1


def test_devices_with_unknown_peak_have_no_utilisation(fit, tmp_path, make_config):
  fit(tmp_path, make_config(num_steps=3))
  assert 'model_flops_utilisation' not in read_metrics(tmp_path / 'metrics.jsonl')[0]
