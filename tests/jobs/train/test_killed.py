"""Kills a training run with SIGKILL at random times, and compares it with a run without interruption."""

import json
import random
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from processes import Processes
from runs import learnt

STAGES = ('dvae', 'prior')
NUM_STEPS = 60
# (stage, step): kill the run soon after the checkpoint of this step.
KILLS = (('dvae', 4), ('dvae', 20), ('dvae', 50), ('prior', 2), ('prior', 16), ('prior', 40))


def start(workdir):
  keys = {'checkpoint_every': 2, 'log_every': 3, 'eval_every': 7, 'sheet_every': 20, 'num_steps': NUM_STEPS}
  command = [
    '-m', 'dalle_jax.train', '--config=configs/quickstart.py:tiny', f'--workdir={workdir}',
    *(f'--config.{stage}_training.{name}={value}' for stage in STAGES for name, value in keys.items()),
  ]  # fmt: skip
  return Processes([command], workdir.with_name(f'{workdir.name}_output'))


def finish(process):
  statuses, (output,) = process.finish()
  assert statuses == [0], output


def last_state(workdir, stage):
  path = workdir / stage / 'checkpoints' / str(NUM_STEPS) / 'state'
  with ocp.StandardCheckpointer() as checkpointer:
    return jax.tree.map(np.asarray, checkpointer.restore(path))


def newest_checkpoint(workdir, stage):
  path = workdir / stage / 'checkpoints'
  return max((int(entry.name) for entry in path.iterdir() if entry.name.isdigit()), default=0) if path.exists() else 0


def kill_after(workdir, stage, step, delay):
  """Starts the run, and kills it `delay` seconds after the checkpoint of `step`."""
  process = start(workdir)
  process.wait_for(lambda: newest_checkpoint(workdir, stage) >= step, poll_s=0.01)
  time.sleep(delay)
  process.kill()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided when restoring')
def test_a_killed_run_ends_with_the_same_states_and_metrics_as_an_uninterrupted_run(tmp_path):
  finish(start(tmp_path / 'uninterrupted'))
  rng = random.Random(0)
  for stage, step in KILLS:
    kill_after(tmp_path / 'killed', stage, step, rng.uniform(0, 0.3))
  finish(start(tmp_path / 'killed'))
  for stage in STAGES:
    assert learnt(tmp_path / 'killed' / stage) == learnt(tmp_path / 'uninterrupted' / stage)
    killed, uninterrupted = (last_state(tmp_path / name, stage) for name in ('killed', 'uninterrupted'))
    assert jax.tree.structure(killed) == jax.tree.structure(uninterrupted)
    for a, b in zip(jax.tree.leaves(killed), jax.tree.leaves(uninterrupted), strict=True):
      np.testing.assert_array_equal(a, b)
  infos = [json.loads((tmp_path / name / 'model' / 'bundle.json').read_text()) for name in ('killed', 'uninterrupted')]
  assert infos[0]['params'] == infos[1]['params']
