"""The main job, ended by SIGKILL at random moments of both stages, against one that nothing ended."""

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
KILLS = (('dvae', 4), ('dvae', 20), ('dvae', 50), ('prior', 2), ('prior', 16), ('prior', 40))  # stage and step


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
  """Starts the run, and ends it somewhat later than the checkpoint of that step."""
  process = start(workdir)
  process.wait_for(lambda: newest_checkpoint(workdir, stage) >= step, poll_s=0.01)
  time.sleep(delay)
  process.kill()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided when restoring')
def test_both_stages_end_as_if_nothing_had_ended_them(tmp_path):
  finish(start(tmp_path / 'whole'))
  delays = random.Random(0)
  for stage, step in KILLS:
    kill_after(tmp_path / 'killed', stage, step, delays.uniform(0, 0.3))
  finish(start(tmp_path / 'killed'))
  for stage in STAGES:
    assert learnt(tmp_path / 'killed' / stage) == learnt(tmp_path / 'whole' / stage)
    killed, whole = (last_state(tmp_path / name, stage) for name in ('killed', 'whole'))
    assert jax.tree.structure(killed) == jax.tree.structure(whole)
    for a, b in zip(jax.tree.leaves(killed), jax.tree.leaves(whole), strict=True):
      np.testing.assert_array_equal(a, b)
  infos = [json.loads((tmp_path / name / 'model' / 'bundle.json').read_text()) for name in ('killed', 'whole')]
  assert infos[0]['params'] == infos[1]['params']
