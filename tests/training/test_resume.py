"""Runs killed by SIGKILL, between saves and while a checkpoint is written, equal an uninterrupted run."""

import json

import pytest
import toy_run
from processes import Processes
from runs import learnt

from dalle_jax.training.metrics_log import read_metrics

POLL_S = 0.002


def start(workdir):
  return Processes([[toy_run.__file__, workdir]], workdir.with_name(f'{workdir.name}_output'))


def kill_when(process, is_due):
  """Kill a run as soon as `is_due()` returns True; fail if the run ends before."""
  process.wait_for(is_due, POLL_S)
  process.kill()


def finish(process):
  statuses, (output,) = process.finish()
  assert statuses == [0], output
  return output


def logged(workdir):
  path = workdir / 'metrics.jsonl'
  return max((line['step'] for line in read_metrics(path)), default=0) if path.exists() else 0


def names(workdir):
  path = workdir / 'checkpoints'
  return [entry.name for entry in path.iterdir()] if path.exists() else []


def is_writing(workdir, above):
  """Whether a checkpoint of a step greater than `above` is being written."""
  unfinished = [name.partition('.')[0] for name in names(workdir) if 'tmp' in name]
  return any(step.isdigit() and int(step) > above for step in unfinished)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  finish(start(workdir))
  return workdir


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, whole):
  kill_when(start(tmp_path), lambda: logged(tmp_path) >= 5)
  kill_when(start(tmp_path), lambda: is_writing(tmp_path, above=12))
  assert any('tmp' in name for name in names(tmp_path))  # half a checkpoint is left behind
  kill_when(start(tmp_path), lambda: logged(tmp_path) >= 30)
  output = finish(start(tmp_path))
  assert 'continuing from step' in output
  assert not any('tmp' in name for name in names(tmp_path))
  assert json.loads((tmp_path / 'result.json').read_text()) == json.loads((whole / 'result.json').read_text())
  assert learnt(tmp_path) == learnt(whole)
  assert len(learnt(whole)) == 14 + 8  # training lines and evaluation lines
