"""Damaged JSON files of a work directory are named at the start, and a refused start changes no file."""

import dataclasses
import json

import pytest

from dalle_jax.config import Config
from dalle_jax.jobs import run_lock, stored_json
from dalle_jax.jobs.train import run
from dalle_jax.jobs.train.workspace import Workspace

CONFIG = Config()
RECORD = {'data': 'a1b2', 'sizes': {'train': 13}, 'tokenizer': ''}
FILES = {
  'tokenizer.json': RECORD,
  'dvae/trained_on.json': RECORD,
  'prior/trained_on.json': RECORD,
  'records.json': {'lists': {'train': [[['a.png', 'a cat'], 'ab' * 32]]}, 'fingerprint': 'a1b2'},
  'scores.json': {'psnr': 20.5, 'kid': None},
  'seconds.json': {'data': 1.5},
  'config.json': json.loads(json.dumps(CONFIG.to_dict())),
  'model/config.json': json.loads(json.dumps(CONFIG.to_dict())),
  'model/bundle.json': {'format_version': 2, 'parts': ['dvae', 'prior'], 'files': {}},
  'pretrained.json': {'params': 'a1b2'},
}


def write_files(workdir, **changes):
  for name, values in FILES.items():
    file = workdir / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(changes.get(name, json.dumps(values)))


def contents(workdir):
  return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in workdir.rglob('*') if path.is_file()}


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('damage', ['', '{}', '[]', 'null', '5', 'half', '{"a": "b"}'])
def test_damaged_json_is_named_and_nothing_is_changed(tmp_path, name, damage):
  text = json.dumps(FILES[name])
  write_files(tmp_path, **{name: text[: len(text) // 2] if damage == 'half' else damage})
  before = contents(tmp_path)
  if (name, damage) in (('seconds.json', '{}'), ('pretrained.json', '{"a": "b"}')):
    Workspace(str(tmp_path), CONFIG)  # no times; another dVAE, which is refused later
  else:
    with pytest.raises(ValueError) as error:
      Workspace(str(tmp_path), CONFIG)
    assert f'{tmp_path / name} is damaged: ' in str(error.value) and str(error.value).endswith('.')
    assert any(word in str(error.value) for word in ('Remove', 'Restore', 'remove', 'Copy'))
  assert contents(tmp_path) == before


def test_sound_files_pass_and_are_not_written_before_the_start_is_accepted(tmp_path):
  write_files(tmp_path, **{'scores.json': '{"fid": NaN}'})
  before = contents(tmp_path)
  config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, num_workers=2))
  space = Workspace(str(tmp_path), config)
  with space.timed('data'):
    pass
  assert contents(tmp_path) == before
  space.accept()
  assert json.loads((tmp_path / 'config.json').read_text())['data']['num_workers'] == 2
  assert json.loads((tmp_path / 'seconds.json').read_text())['data'] > 1.5


@pytest.mark.parametrize('kind', ['directory', 'circle', 'dangling'])
def test_what_is_no_file_is_named(tmp_path, kind):
  write_files(tmp_path)
  file = tmp_path / 'tokenizer.json'
  file.unlink()
  if kind == 'directory':
    file.mkdir()
  else:
    file.symlink_to(file if kind == 'circle' else 'nothing')
  with pytest.raises(ValueError, match=r'tokenizer\.json'):
    stored_json.check(tmp_path)


def test_a_run_that_is_refused_for_its_data_changes_no_file(tmp_path, monkeypatch):
  write_files(tmp_path)
  monkeypatch.setattr(run.picture_data, 'prepare', lambda config, space: 'data')
  monkeypatch.setattr(run.picture_data, 'check', lambda config: None)

  def refuse(*args):
    raise ValueError('other data')

  monkeypatch.setattr(run, 'TrainingRecords', refuse)
  before = contents(tmp_path)
  with pytest.raises(ValueError, match='other data'):
    run.run(CONFIG, str(tmp_path))
  assert contents(tmp_path) == before and not (tmp_path / run_lock.FILE).exists()
