"""The list of stages, and what it takes to add a task."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from web_page import Page

from dalle_jax import stages
from dalle_jax.config import Config
from dalle_jax.training.stage_tasks import batch_shapes, make_task, task_module, tokens_per_example

ROOT = pathlib.Path(__file__).parents[1]
VALUES = {
  'all': {}, 'dvae': {}, 'joint': {}, 'reranker': {},
  'sequence': {'data': {'source': 'text'}, 'tokenizer': {'kind': 'bytes'}},
}  # fmt: skip


def test_stages_follow_stages_that_are_listed_before_them():
  names = stages.names()
  assert len(set(names)) == len(names) == len(set(stages.tasks()))
  for i, stage in enumerate(stages.STAGES):
    assert set(stage.follows) <= set(names[:i])


@pytest.mark.parametrize('task', stages.tasks())
def test_every_stage_has_its_configuration_groups_task_and_curves(task):
  config = Config.from_dict({'task': task, **VALUES[task]})
  for stage in stages.of_task(task):
    for group in (*stage.model_groups, stage.training_group):
      assert hasattr(config, group)
    assert set(task_module(stage.name).batch_fields(config)) <= set(stage.reads)
    assert task_module(stage.name).CURVES and tokens_per_example(config, stage.name) > 0
    assert callable(stages.part_initializer(stage.parts[-1][0]))
  last = stages.of_task(task)[-1]
  assert make_task(config, last.name).name == last.name
  assert all(shape.shape[0] == 4 for shape in batch_shapes(config, last.name, 4).values())


def test_a_pretrained_dvae_is_not_trained():
  config = Config.from_dict({'dvae': {'pretrained': 'DIR'}})
  assert [stage.name for stage in config.trained_stages] == ['prior']
  assert [stage.name for stage in Config().trained_stages] == ['dvae', 'prior']


TOY_DOOR = """
import runpy, sys
from dalle_jax import stages
stages.STAGES += (
  stages.Stage(
    name='toy', title='Toy', task='toy', module='toy_task', model_groups=('dvae',), reads=('image',),
    parts=(('toy', 'toy_task:init_toy'),), training_group='dvae_training',
  ),
)
sys.argv[0] = 'train'
runpy.run_module('dalle_jax.train', run_name='__main__', alter_sys=True)
"""


def test_a_task_is_added_by_its_file_and_one_entry(tmp_path):
  command = [
    sys.executable, '-c', TOY_DOOR, '--config=configs/quickstart.py:tiny', '--config.task=toy',
    '--config.dvae_training.num_steps=2', '--config.dvae_training.log_every=1', '--config.dvae_training.eval_every=1',
    '--config.data.num_train=32', '--config.data.num_validation=8', '--config.data.num_held_out=8',
    '--config.data.num_threads=1', f'--workdir={tmp_path}',
  ]  # fmt: skip
  environment = {'PYTHONPATH': f'{ROOT}:{ROOT / "tests" / "helpers"}'}
  run = subprocess.run(
    command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
  )
  assert run.returncode == 0, run.stderr
  report = Page((tmp_path / 'report.html').read_text())
  labels = [figure.attrs.get('aria-label') for figure in report.of('figure')]
  assert {'Toy: loss', 'Toy: brightness'} <= set(labels)
  scores = json.loads((tmp_path / 'scores.json').read_text())
  assert 'toy/loss' in scores and 'seconds/toy' in scores
  assert json.loads((tmp_path / 'model' / 'bundle.json').read_text())['parts'] == ['toy']
