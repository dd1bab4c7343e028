"""Starts the training command twice in one work directory."""

import signal
import time

import pytest
from processes import Processes

from dalle_jax.jobs import run_lock
from dalle_jax.training.metrics_log import read_metrics

# Compiles in seconds and trains long enough to be found running.
TEXT = (
  '--config=configs/language.py:neural_ngram,tiny', '--config.tokenizer.kind=bytes', '--stop_after=sequence',
  '--config.sequence_training.num_steps=600', '--config.sequence_training.log_every=10',
  '--config.sequence_training.eval_every=300', '--config.sequence_training.checkpoint_every=50',
)  # fmt: skip


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
