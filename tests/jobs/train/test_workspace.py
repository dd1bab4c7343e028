import json
import time

import pytest

from dalle_jax.config import Config
from dalle_jax.jobs.train.workspace import Workspace


def _config(**groups):
  return Config.from_dict(groups)


def test_the_directory_stores_the_configuration(tmp_path):
  space = Workspace(str(tmp_path / 'a' / 'run'), _config(seed=3))
  assert Config.from_dict(json.loads((space.path / 'config.json').read_text())) == _config(seed=3)
  assert space.path == tmp_path / 'a' / 'run'
  assert space.model.parent == space.tokenizer.parent == space.path


def test_another_configuration_is_rejected_and_every_difference_listed(tmp_path):
  Workspace(str(tmp_path), _config(seed=3))
  (tmp_path / 'data').mkdir()
  with pytest.raises(ValueError) as error:
    Workspace(str(tmp_path), _config(seed=4, prior={'num_layers': 2}, data={'image_size': 64}))
  lines = str(error.value).splitlines()
  assert str(tmp_path) in lines[0]
  assert [line.strip() for line in lines[1:]] == [
    'config.data.image_size: 32 -> 64',
    'config.prior.num_layers: 64 -> 2',
    'config.seed: 3 -> 4',
  ]
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 3


def test_a_directory_without_results_accepts_another_configuration(tmp_path):
  with Workspace(str(tmp_path), _config(seed=3)).timed('data'):
    pass
  Workspace(str(tmp_path), _config(seed=4))
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 4


@pytest.mark.parametrize(
  'groups',
  [
    {'mesh': {'fsdp': 2}},
    {'logging': {'tensorboard': False}},
    {'sampling': {'temperature': 0.5}},
    {'evaluation': {'num_prompts': 7}},
    {'data': {'num_workers': 2, 'num_threads': 1, 'data_dir': '/elsewhere', 'path': '/moved'}},
    {'profile': (3, 4)},
    {'prior_training': {'nonfinite': 'rewind', 'max_nonfinite': 3, 'fusion_mib': 64}},
  ],
)
def test_keys_that_do_not_affect_the_trained_model_may_change(tmp_path, groups):
  Workspace(str(tmp_path), _config())
  Workspace(str(tmp_path), _config(**groups))
  assert Config.from_dict(json.loads((tmp_path / 'config.json').read_text())) == _config(**groups)


def test_keys_missing_in_the_configuration_of_an_earlier_version_have_their_defaults(tmp_path):
  space = Workspace(str(tmp_path), _config())
  (tmp_path / 'data').mkdir()
  values = json.loads((space.path / 'config.json').read_text())
  del values['prior_training']['ema_every'], values['profile']
  (space.path / 'config.json').write_text(json.dumps(values))
  Workspace(str(tmp_path), _config())
  with pytest.raises(ValueError, match=r'config\.prior_training\.ema_every: 1 -> 2'):
    Workspace(str(tmp_path), _config(prior_training={'ema_every': 2}))


def test_numbers_that_are_not_finite_become_null(tmp_path):
  space = Workspace(str(tmp_path), _config())
  space.write('scores.json', {'a': float('inf'), 'b': float('nan'), 'c': 1.5, 'd': 2})
  text = (tmp_path / 'scores.json').read_text()
  assert json.loads(text, parse_constant=pytest.fail) == {'a': None, 'b': None, 'c': 1.5, 'd': 2}


def test_a_damaged_configuration_file_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed"')
  with pytest.raises(ValueError, match=r'config\.json is damaged'):
    Workspace(str(tmp_path), _config())


def test_a_directory_that_cannot_be_created_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'--workdir .*file/run cannot be made'):
    Workspace(str(tmp_path / 'file' / 'run'), _config())


def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
  def fail(path, text):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr('pathlib.Path.write_bytes', fail)
  with pytest.raises(ValueError, match=r'--workdir .*run cannot be made or written to: .*Permission denied'):
    Workspace(str(tmp_path / 'run'), Config())


def test_an_empty_workdir_is_rejected():
  with pytest.raises(ValueError, match='--workdir is empty'):
    Workspace('', Config())


def test_generated_data_are_in_the_work_directory_unless_data_dir_is_set(tmp_path):
  space = Workspace(str(tmp_path), _config())
  assert space.data(_config()) == tmp_path / 'data'
  assert space.data(_config(data={'data_dir': str(tmp_path / 'shared')})) == tmp_path / 'shared'


def test_stage_times_add_up_over_restarts_and_exceptions(tmp_path, monkeypatch):
  clock = iter([10, 12, 100, 103.5, 7, 8])
  monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
  space = Workspace(str(tmp_path), _config())
  with space.timed('dvae'):
    pass
  with pytest.raises(RuntimeError), space.timed('dvae'):
    raise RuntimeError
  restarted = Workspace(str(tmp_path), _config())
  with restarted.timed('prior'):
    pass
  assert Workspace(str(tmp_path), _config()).seconds() == {
    'seconds/dvae': 5.5, 'seconds/prior': 1, 'seconds/total': 6.5,
  }  # fmt: skip


def test_a_failed_write_keeps_the_earlier_file(tmp_path):
  space = Workspace(str(tmp_path), _config())
  space.write('scores.json', {'a': 1})
  with pytest.raises(TypeError):
    space.write('scores.json', {'a': object()})
  assert json.loads((tmp_path / 'scores.json').read_text()) == {'a': 1}


def test_a_group_that_the_task_does_not_read_may_change(tmp_path):
  Workspace(str(tmp_path), _config(model={'embed_dim': 64}))
  (tmp_path / 'data').mkdir()
  Workspace(str(tmp_path), _config())
  with pytest.raises(ValueError, match=r'config\.prior\.num_layers'):
    Workspace(str(tmp_path), _config(prior={'num_layers': 3}))


def test_a_directory_in_which_pictures_were_only_checked_and_compared_accepts_another_configuration(tmp_path):
  Workspace(str(tmp_path), Config(seed=1))
  (tmp_path / 'data' / 'checked').mkdir(parents=True)
  (tmp_path / 'overlaps').mkdir()
  Workspace(str(tmp_path), Config(seed=2))
  (tmp_path / 'data' / 'shapes').mkdir()
  with pytest.raises(ValueError, match='another configuration'):
    Workspace(str(tmp_path), Config(seed=3))


DAMAGE = [
  '',
  '{}',
  '[]',
  'null',
  '5',
  '{"seed"',
  '{"seed": 3}',
  '\0' * 40,
  '[' * 100_000,
  '{"a":' * 200 + '1' + '}' * 200,
]


@pytest.mark.parametrize('has_results', [True, False])
@pytest.mark.parametrize('text', DAMAGE, ids=lambda text: text[:8])
def test_a_damaged_configuration_file_is_named_and_kept(tmp_path, text, has_results):
  if has_results:
    (tmp_path / 'dvae' / 'checkpoints' / '4').mkdir(parents=True)
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=r'config\.json is damaged: .* set another --workdir') as error:
    Workspace(str(tmp_path), _config())
  assert len(str(error.value)) < 1000
  assert (tmp_path / 'config.json').read_text() == text and not (tmp_path / 'seconds.json').exists()


@pytest.mark.parametrize('value', [5, None, [], 'text'])
def test_a_group_of_the_configuration_file_that_is_no_group_is_named(tmp_path, value):
  space = Workspace(str(tmp_path), _config())
  (tmp_path / 'data').mkdir()
  values = json.loads((space.path / 'config.json').read_text())
  (space.path / 'config.json').write_text(json.dumps(values | {'prior': value}))
  with pytest.raises(ValueError, match=r'config\.json is damaged: prior must be a group of keys'):
    Workspace(str(tmp_path), _config())


@pytest.mark.parametrize('name', ['dvae', 'prior', 'sequence', 'model'])
def test_results_without_a_configuration_file_are_not_overwritten(tmp_path, name):
  (tmp_path / name).mkdir()
  Workspace(str(tmp_path), _config())  # an empty directory is no result
  (tmp_path / 'config.json').unlink()
  (tmp_path / name / 'config.json').write_text('{}')
  with pytest.raises(ValueError, match=rf'config\.json is missing, but .* holds results of a run \({name}\)') as error:
    Workspace(str(tmp_path), _config())
  assert (f'Copy {tmp_path}/model/config.json to' in str(error.value)) == (name == 'model')
  assert not (tmp_path / 'config.json').exists()


@pytest.mark.parametrize(
  'text',
  ['', '[]', '5', 'null', '{"a": 1e999}', *(f'{{"dvae": {value}}}' for value in ('"x"', '""', 'false', 'true', '-1'))],
)
def test_a_damaged_file_of_times_is_named_and_kept(tmp_path, text):
  space = Workspace(str(tmp_path), _config())
  (space.path / 'seconds.json').write_text(text)
  with pytest.raises(ValueError, match=r'seconds\.json is damaged: .* Remove this file to go on'):
    Workspace(str(tmp_path), _config())
  assert (space.path / 'seconds.json').read_text() == text


def test_times_that_were_not_finite_count_as_zero(tmp_path):
  Workspace(str(tmp_path), _config())
  (tmp_path / 'seconds.json').write_text('{"dvae": null, "prior": 2}')
  assert Workspace(str(tmp_path), _config()).seconds() == {
    'seconds/dvae': 0, 'seconds/prior': 2, 'seconds/total': 2,
  }  # fmt: skip


def test_damaged_metrics_are_named_at_the_start(tmp_path):
  Workspace(str(tmp_path), _config())
  (tmp_path / 'prior').mkdir()
  (tmp_path / 'prior' / 'metrics.jsonl').write_text('{"step": 1}\nnull\n{"step": 2}\n')
  with pytest.raises(ValueError, match=r'prior/metrics\.jsonl, line 2 is damaged'):
    Workspace(str(tmp_path), _config())


@pytest.mark.parametrize('name', ['e[2]', 't*', 'q?', 'a\\b', '[x]/run', 'a\nb', 'a\x1bb', 'a\udc80b', 'x' * 4000])
def test_names_that_libraries_cannot_handle_are_refused_before_anything_is_made(tmp_path, name):
  with pytest.raises(ValueError, match='--workdir') as error:
    Workspace(f'{tmp_path}/{name}', _config())
  assert len(str(error.value)) < 700 and '\x1b' not in str(error.value)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  'name', ['a b', 'p%d', '%41', '{x}', '-x', 'é', '$H', "q'", 'x' * 250, 'a,b', 'a]b', '~', 'x@2']
)
def test_other_names_are_accepted(tmp_path, name, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert Workspace(name, _config()).path == tmp_path / name


@pytest.mark.parametrize('path', ['gs://bucket/run', 's3://b/run', 'gs:/b/run', 'file:///tmp/run'])
def test_urls_are_refused(tmp_path, path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match='is a URL'):
    Workspace(path, _config())
  with pytest.raises(ValueError, match=r'config\.data\.data_dir .* is a URL'):
    Workspace('run', _config(data={'data_dir': path}))
  assert not (tmp_path / path.partition('/')[0]).exists()
