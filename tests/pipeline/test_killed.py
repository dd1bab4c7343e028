"""The main job, ended by SIGKILL at random moments of both stages, against one that nothing ended."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dalle_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
STAGES = ('dvae', 'prior')
NUM_STEPS = 60
NUM_KILLS = 8


def start(workdir):
  keys = {'checkpoint_every': 2, 'log_every': 3, 'eval_every': 7, 'sheet_every': 20, 'num_steps': NUM_STEPS}
  command = [
    sys.executable, '-m', 'dalle_jax.train', '--config=configs/quickstart.py:tiny', f'--workdir={workdir}',
    *(f'--config.{stage}_training.{name}={value}' for stage in STAGES for name, value in keys.items()),
  ]  # fmt: skip
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
  return subprocess.Popen(
    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(process):
  output = process.communicate(timeout=900)[0]
  assert process.returncode == 0, output


def last_state(workdir, stage):
  path = workdir / stage / 'checkpoints' / str(NUM_STEPS) / 'state'
  with ocp.StandardCheckpointer() as checkpointer:
    return jax.tree.map(np.asarray, checkpointer.restore(path))


def learnt(workdir, stage):
  return [
    {name: value for name, value in line.items() if 'time' not in name and 'per_second' not in name}
    for line in read_metrics(workdir / stage / 'metrics.jsonl')
  ]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided when restoring')
def test_both_stages_end_as_if_nothing_had_ended_them(tmp_path):
  finish(start(tmp_path / 'whole'))
  moments, kills = random.Random(0), 0
  while kills < NUM_KILLS:
    process = start(tmp_path / 'killed')
    try:
      process.communicate(timeout=moments.uniform(5, 30))
      break  # it finished
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.communicate()
      kills += 1
  assert kills >= 2
  finish(start(tmp_path / 'killed'))
  for stage in STAGES:
    assert learnt(tmp_path / 'killed', stage) == learnt(tmp_path / 'whole', stage)
    killed, whole = (last_state(tmp_path / name, stage) for name in ('killed', 'whole'))
    assert jax.tree.structure(killed) == jax.tree.structure(whole)
    for a, b in zip(jax.tree.leaves(killed), jax.tree.leaves(whole), strict=True):
      np.testing.assert_array_equal(a, b)
  infos = [json.loads((tmp_path / name / 'model' / 'bundle.json').read_text()) for name in ('killed', 'whole')]
  assert infos[0]['params'] == infos[1]['params']
