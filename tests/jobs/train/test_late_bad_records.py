"""Runs on folders whose pictures break while a stage trains."""

import os
import runpy
import signal
from pathlib import Path

import pytest
from numbered_pictures import save_numbered
from runs import learnt

from dalle_jax.config import Config
from dalle_jax.data import registry
from dalle_jax.jobs.train import run
from dalle_jax.jobs.train.trained_on import TrainingRecords
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.training import loop
from dalle_jax.training.metrics_log import read_metrics
from dalle_jax.training.signals import EXIT_INTERRUPTED

QUICKSTART = Path(__file__).parents[3] / 'configs' / 'quickstart.py'


def _config(folder, **data):
  groups = runpy.run_path(str(QUICKSTART))['get_config']('tiny').to_dict()
  groups |= {'task': 'dvae'}
  groups['dvae_training'] |= {'num_steps': 8, 'batch_size': 4, 'log_every': 2, 'eval_every': 4, 'checkpoint_every': 3}
  groups['data'] |= {'source': 'folder', 'path': str(folder), 'validation_fraction': 0.3, 'max_bad_share': 0.3, **data}
  return Config.from_dict(groups)


@pytest.fixture
def folder(tmp_path):
  return save_numbered(tmp_path / 'pictures', 24)


def _broken_after_preparing(monkeypatch, folder, splits):
  """Cut the first pictures of the splits short, and delete the second, once the data set has been prepared."""
  prepare = registry.prepare

  def prepared(*args, **options):
    dataset = prepare(*args, **options)
    for split in splits:
      for number, act in enumerate((lambda path: path.write_bytes(path.read_bytes()[:300]), Path.unlink)):
        path = folder / dataset.open(split).name(number)
        if path.exists():
          act(path)
    return dataset

  monkeypatch.setattr(registry, 'prepare', prepared)


@pytest.mark.slow
def test_a_run_goes_on_and_resumes_exactly_after_pictures_broke(folder, tmp_path, monkeypatch, caplog):
  config = _config(folder)
  intact = registry.prepare(config.data, tmp_path)
  contents = {path: path.read_bytes() for path in folder.iterdir()}
  _broken_after_preparing(monkeypatch, folder, ['train'])
  assert run.main(config, str(tmp_path / 'whole'), 'dvae') == 0
  for number in range(2):
    assert caplog.text.count(f'Cannot read {intact.open("train").name(number)}: ') == 1
  for path, content in contents.items():
    path.write_bytes(content)
  step = loop._Run._one_step

  def interrupted(self):
    step(self)
    if self.step == 5:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop._Run, '_one_step', interrupted)
    assert run.main(config, str(tmp_path / 'parts'), 'dvae') == EXIT_INTERRUPTED
  assert run.main(config, str(tmp_path / 'parts'), 'dvae') == 0
  assert '2 of the 24 records' in caplog.text
  whole, parts = learnt(tmp_path / 'whole' / 'dvae'), learnt(tmp_path / 'parts' / 'dvae')
  assert parts == whole
  assert max(line.get('bad_records', 0) for line in whole) >= 2


@pytest.mark.slow
def test_held_out_pictures_that_broke_are_left_out_and_counted(folder, tmp_path, monkeypatch, capfd):
  config = _config(folder)
  count = len(registry.prepare(config.data, tmp_path).open('validation'))
  _broken_after_preparing(monkeypatch, folder, ['validation'])
  run.run(config, str(tmp_path / 'run'), 'report')
  lines = read_metrics(tmp_path / 'run' / 'dvae' / 'metrics.jsonl')
  assert [line['eval/left_out_records'] for line in lines if 'eval/loss' in line] == [2, 2]
  assert f'2 of {count} records' in capfd.readouterr().out


@pytest.mark.slow
def test_a_run_whose_pictures_are_gone_ends_and_continues_when_they_are_back(folder, tmp_path, monkeypatch):
  config = _config(folder)
  moved = folder.with_name('moved')
  step = loop._Run._one_step

  def gone(self):
    step(self)
    if self.step == 3 and folder.exists():
      folder.rename(moved)

  monkeypatch.setattr(loop._Run, '_one_step', gone)
  with pytest.raises(ValueError, match=r'records .* step \d is in .*max_bad_share'):
    run.run(config, str(tmp_path / 'run'), 'dvae')
  moved.rename(folder)
  monkeypatch.setattr(loop._Run, '_one_step', step)
  run.run(config, str(tmp_path / 'run'), 'dvae')
  assert learnt(tmp_path / 'run' / 'dvae')[-1]['step'] == 8


def test_a_run_that_accepts_other_data_continues_after_some_of_them_broke(folder, tmp_path):
  config = _config(folder)
  space = Workspace(str(tmp_path / 'run'), config)
  file = space.path / 'records.json'

  def prepared(began=True):
    return registry.prepare(config.data, tmp_path, run=registry.RunData(file, began))

  first = prepared(began=False)
  (stage,) = config.trained_stages
  TrainingRecords(config, space, first).keep(stage)
  steps = space.path / stage.name / 'checkpoints'
  (steps / '3').mkdir(parents=True)
  stored = file.read_bytes()
  (folder / '03.txt').write_text('another caption')
  other = prepared()
  for allow in (False, True):  # a stage in the middle of its training keeps its list
    with pytest.raises(ValueError, match='was trained on other data'):
      TrainingRecords(config, space, other, allow).check_data()
  assert file.read_bytes() == stored
  (steps / '8').mkdir()
  TrainingRecords(config, space, other, True).check_data()
  (folder / '05.png').unlink()
  assert prepared().fingerprint == other.fingerprint != first.fingerprint
