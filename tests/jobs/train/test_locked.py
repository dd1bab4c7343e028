"""Training holds the lock of its work directory; the slow tests start the command twice."""

import pathlib
import runpy
import signal
import time

import pytest
from processes import Processes

from dalle_jax.config import Config
from dalle_jax.jobs import run_lock
from dalle_jax.jobs.run_lock import RunLock
from dalle_jax.jobs.train import run
from dalle_jax.training.metrics_log import read_metrics

LANGUAGE = pathlib.Path(__file__).parents[3] / 'configs' / 'language.py'
# Compiles in seconds and trains long enough to be found running.
TEXT = (
  '--config=configs/language.py:neural_ngram,tiny', '--config.tokenizer.kind=bytes', '--stop_after=sequence',
  '--config.sequence_training.num_steps=600', '--config.sequence_training.log_every=10',
  '--config.sequence_training.eval_every=300', '--config.sequence_training.checkpoint_every=50',
)  # fmt: skip


def test_training_holds_the_lock_confirms_it_at_every_step_and_releases_it_after_an_error(tmp_path, monkeypatch):
  values = runpy.run_path(str(LANGUAGE))['get_config']('neural_ngram,tiny').to_dict()
  values['tokenizer']['kind'] = 'bytes'
  calls = []

  def train(*args, hooks, **kwargs):
    assert (tmp_path / run_lock.FILE).exists()
    with pytest.raises(ValueError, match='is in use'):
      run.run(Config.from_dict(values), str(tmp_path))
    with monkeypatch.context() as patch:
      patch.setattr(RunLock, 'confirm', lambda lock: calls.append(lock))
      assert not any(hook.is_due(3, 10) for hook in hooks)
    raise RuntimeError('an error in training')

  monkeypatch.setattr(run, 'train', train)
  with pytest.raises(RuntimeError, match='an error in training'):
    run.run(Config.from_dict(values), str(tmp_path))
  assert len(calls) == 1 and not (tmp_path / run_lock.FILE).exists()


def _start(workdir, name, *arguments):
  command = ['-m', 'dalle_jax.train', f'--workdir={workdir}', *TEXT, *arguments]
  return Processes([command], workdir.with_name(name))


def _wait_for_step(process, workdir, step):
  metrics = workdir / 'sequence' / 'metrics.jsonl'
  process.wait_for(lambda: metrics.exists() and any(line['step'] >= step for line in read_metrics(metrics)))


@pytest.mark.slow
def test_a_second_start_is_refused_and_the_first_run_ends_well(tmp_path):
  workdir = tmp_path / 'run'
  first = _start(workdir, 'first', '--config.sequence_training.num_steps=3000')
  _wait_for_step(first, workdir, 20)
  statuses, (output,) = _start(workdir, 'second', '--config.sequence_training.num_steps=3000').finish()
  assert statuses == [2] and 'Traceback' not in output, output
  assert f'Process {first.processes[0].pid} on host ' in output and f'{workdir} is in use' in output
  statuses, (output,) = first.finish()
  assert statuses == [0], output
  assert not (workdir / run_lock.FILE).exists() and (workdir / 'model' / 'bundle.json').exists()


@pytest.mark.slow
def test_a_suspended_run_that_lost_its_directory_ends_and_the_other_goes_on(tmp_path):
  workdir = tmp_path / 'run'
  first = _start(workdir, 'first', '--config.sequence_training.num_steps=100000')
  _wait_for_step(first, workdir, 60)
  first.processes[0].send_signal(signal.SIGSTOP)
  time.sleep(run_lock.STALE_S + 2)
  second = _start(workdir, 'second', '--config.sequence_training.num_steps=100000')
  second.wait_for(lambda: 'continuing from step' in second.outputs()[0])
  first.processes[0].send_signal(signal.SIGCONT)
  statuses, (output,) = first.finish()
  assert statuses == [run_lock.EXIT_LOST] and 'lost its lock' in output, output
  _wait_for_step(second, workdir, 200)
  second.processes[0].send_signal(signal.SIGTERM)
  statuses, (output,) = second.finish()
  assert statuses == [75], output
  assert not (workdir / run_lock.FILE).exists()
