"""A work directory is bound to the contents of its data: a stage that was trained on other data is refused."""

import dataclasses
import json
import pathlib
import runpy

import pytest
from random_models import caption_tokenizer

from dalle_jax import bundle, hosts
from dalle_jax.config import Config
from dalle_jax.data.text.text_tokenizer import ByteTokenizer
from dalle_jax.data.text.tokenizer import Tokenizer
from dalle_jax.jobs.train import picture_data, run
from dalle_jax.jobs.train.text_data import TextData
from dalle_jax.jobs.train.trained_on import TrainedOn, TrainingRecords
from dalle_jax.jobs.train.workspace import Workspace

LANGUAGE = pathlib.Path(__file__).parents[3] / 'configs' / 'language.py'
PICTURES = Config()  # trains a dVAE, then a prior
FIRST, OTHER = TextData({'train': [b'a' * 100]}, 'first'), TextData({'train': [b'b' * 90, b'c']}, 'other')


class OtherTokenizer(ByteTokenizer):
  pieces_hash = contents_hash = 'another'


def _records(tmp_path, data, config=PICTURES, allow=False):
  return TrainingRecords(config, Workspace(str(tmp_path), config), data, allow)


def _train(tmp_path, data, stage, step=None, config=PICTURES, tokenizer=None, allow=False):
  """Do what a run does before a stage, and leave a checkpoint at `step`, by default the last step."""
  records = _records(tmp_path, data, config, allow)
  records.check_data()
  records.check_tokenizer(tokenizer or ByteTokenizer())
  (stage,) = [candidate for candidate in config.trained_stages if candidate.name == stage]
  records.keep(stage)
  step = step or getattr(config, f'{stage.name}_training').num_steps
  (tmp_path / stage.name / 'checkpoints' / str(step)).mkdir(parents=True)
  return records


def test_fingerprints_of_folders_with_other_captions_are_shown_differently():
  shown = [str(TrainedOn('a' * 32 + letter * 64, {'train': 3})) for letter in 'bc']
  assert shown == ['fingerprint aaaaaaaa-bbbbbbbb (3 train)', 'fingerprint aaaaaaaa-cccccccc (3 train)']


def test_a_later_stage_on_other_data_is_refused_in_words(tmp_path):
  _train(tmp_path, FIRST, 'dvae')
  with pytest.raises(ValueError) as error:
    _records(tmp_path, OTHER).check_data()
  message = str(error.value)
  assert 'stage dvae' in message and '--allow_other_data' in message and str(tmp_path) in message
  assert 'fingerprint first (100 train) then, fingerprint other (91 train) now' in message
  _records(tmp_path, FIRST).check_data()


def test_with_the_flag_the_parts_keep_the_data_that_they_were_trained_on(tmp_path, capsys):
  _train(tmp_path, FIRST, 'dvae')
  records = _train(tmp_path, OTHER, 'prior', allow=True)
  assert 'stage dvae was trained on other data' in capsys.readouterr().out
  assert records.data_of_parts() == {'dvae': 'first', 'prior': 'other'}
  assert records.data_of_last_stage == 'other'
  for data in (FIRST, OTHER):
    with pytest.raises(ValueError, match='was trained on other data'):
      _records(tmp_path, data).check_data()


def test_a_report_on_other_data_names_the_data_of_the_stages(tmp_path):
  for stage in ('dvae', 'prior'):
    _train(tmp_path, FIRST, stage)
  with pytest.raises(ValueError, match='stage dvae was trained on other data'):
    _records(tmp_path, OTHER).check_data()
  records = _records(tmp_path, OTHER, allow=True)
  records.check_data()
  assert records.data_of_last_stage == 'first'


def test_the_data_of_a_stage_cannot_change_before_its_end(tmp_path):
  _train(tmp_path, FIRST, 'dvae', step=7)
  with pytest.raises(ValueError, match=r'has reached step 7 of \d+, and the data of a stage cannot change'):
    _records(tmp_path, OTHER, allow=True).check_data()


def test_a_stage_without_checkpoint_takes_other_data(tmp_path):
  records = _records(tmp_path, FIRST)
  records.check_data()
  records.keep(PICTURES.trained_stages[0])
  records = _records(tmp_path, OTHER)
  records.check_data()
  records.keep(PICTURES.trained_stages[0])
  assert json.loads((tmp_path / 'dvae' / 'trained_on.json').read_text())['data'] == 'other'


def test_a_look_at_the_data_leaves_the_configuration_open(tmp_path):
  _records(tmp_path, FIRST).check_data()
  Workspace(str(tmp_path), dataclasses.replace(PICTURES, seed=7))


def test_a_stage_of_an_earlier_version_gets_its_record(tmp_path):
  _train(tmp_path, FIRST, 'dvae')
  (tmp_path / 'dvae' / 'trained_on.json').unlink()
  records = _records(tmp_path, OTHER)
  records.check_data()
  assert records.data_of_parts() == {'dvae': 'other'}
  records.keep(PICTURES.trained_stages[0])
  with pytest.raises(ValueError, match=r'fingerprint other .* then, fingerprint first .* now'):
    _records(tmp_path, FIRST).check_data()


def test_the_checkpoint_of_a_stage_of_an_earlier_version_says_what_its_data_were(tmp_path):
  _train(tmp_path, OTHER, 'dvae')
  (tmp_path / 'dvae' / 'trained_on.json').unlink()
  (checkpoint,) = (tmp_path / 'dvae' / 'checkpoints').iterdir()
  (checkpoint / 'data').mkdir()
  (checkpoint / 'data' / 'metadata').write_text('{"fingerprint": "first", "dataset_length": 100}')
  with pytest.raises(ValueError, match=r'fingerprint first \(100 train\) then, fingerprint other \(91 train\) now'):
    _records(tmp_path, OTHER).check_data()
  for data in (FIRST, OTHER):
    records = _records(tmp_path, data, allow=True)
    records.check_data()
    records.keep(PICTURES.trained_stages[0])
    assert records.data_of_parts() == {'dvae': 'first'}
  assert json.loads((tmp_path / 'dvae' / 'trained_on.json').read_text())['data'] == 'first'


def test_another_tokenizer_is_refused(tmp_path):
  _train(tmp_path, FIRST, 'dvae')
  _records(tmp_path, FIRST).check_tokenizer(OtherTokenizer())  # the dVAE reads no text
  _train(tmp_path, FIRST, 'prior', step=3)
  with pytest.raises(ValueError, match=r'stage prior was trained with another tokenizer .*: hash .* then, another now'):
    _records(tmp_path, FIRST).check_tokenizer(OtherTokenizer())
  _records(tmp_path, FIRST, allow=True).check_tokenizer(OtherTokenizer())


def test_a_tokenizer_with_a_flipped_bit_in_its_rules_is_refused(tmp_path):
  tokenizer, file = caption_tokenizer(), tmp_path / 'changed.model'
  _train(tmp_path, FIRST, 'prior', step=3, tokenizer=tokenizer)
  tokenizer.save(file)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  changed = Tokenizer.load(file)
  assert changed.pieces_hash == tokenizer.pieces_hash
  with pytest.raises(ValueError, match='stage prior was trained with another tokenizer'):
    _records(tmp_path, FIRST).check_tokenizer(changed)


def test_a_record_of_the_pieces_of_a_tokenizer_is_accepted(tmp_path):
  tokenizer = caption_tokenizer()
  _train(tmp_path, FIRST, 'prior', step=3, tokenizer=tokenizer)
  file = tmp_path / 'prior' / 'trained_on.json'
  values = json.loads(file.read_text())
  assert values['tokenizer'] == tokenizer.contents_hash != tokenizer.pieces_hash
  file.write_text(json.dumps(values | {'tokenizer': tokenizer.pieces_hash}))
  _records(tmp_path, FIRST).check_tokenizer(tokenizer)


def test_a_tokenizer_of_other_data_is_trained_again_unless_a_stage_needs_it(tmp_path, capsys):
  file = tmp_path / 'tokenizer.model'
  _records(tmp_path, FIRST).check_data()
  file.write_text('of the first data')
  _records(tmp_path, FIRST).check_data()
  assert file.exists()
  _records(tmp_path, OTHER).check_data()
  assert not file.exists() and 'it is trained again' in capsys.readouterr().out
  file.write_text('of the other data')
  _train(tmp_path, OTHER, 'prior')
  _records(tmp_path, FIRST, allow=True).check_data()
  assert file.exists()


@pytest.mark.parametrize('text', ['', '{}', '[]', 'null', '5', '{"data": 3, "sizes": {}, "tokenizer": ""}'])
def test_a_damaged_record_is_named(tmp_path, text):
  _train(tmp_path, FIRST, 'dvae')
  file = tmp_path / 'dvae' / 'trained_on.json'
  file.write_text(text)
  with pytest.raises(ValueError, match=r'trained_on\.json is damaged.*Remove this file if'):
    _records(tmp_path, FIRST).check_data()
  assert file.read_text() == text


def _ngrams(path):
  values = runpy.run_path(str(LANGUAGE))['get_config']('ngram,tiny').to_dict()
  values['model'] |= {'length': 8, 'order': 2}
  values['tokenizer']['kind'] = 'bytes'
  values['data'] |= {'path': str(path)}
  return Config.from_dict(values)


def test_the_contents_of_the_data_bind_a_run_and_their_path_does_not(tmp_path):
  text, workdir = tmp_path / 'a.txt', tmp_path / 'run'
  text.write_text('one two three\n' * 20)
  run.run(_ngrams(text), str(workdir), 'sequence')
  moved = text.rename(tmp_path / 'b.txt')
  run.run(_ngrams(moved), str(workdir), 'sequence')  # the same contents elsewhere
  first = bundle.check(workdir / 'model', ('model',))
  moved.write_text('one two four\n' * 20)
  with pytest.raises(ValueError, match='stage sequence was trained on other data'):
    run.run(_ngrams(moved), str(workdir), 'sequence')  # other contents at the same path
  assert bundle.check(workdir / 'model', ('model',)) == first
  run.run(_ngrams(moved), str(workdir), 'sequence', allow_other_data=True)  # n-grams are counted again
  assert bundle.check(workdir / 'model', ('model',))['data'] != first['data']
  run.run(_ngrams(moved), str(workdir), 'sequence')


def test_a_bundle_lists_the_data_of_its_parts_if_they_differ(tmp_path):
  from random_models import PICTURES as small
  from random_models import caption_tokenizer, random_params

  config, tokenizer = Config.from_dict(small), caption_tokenizer()
  params = random_params(config, tokenizer.vocab_size)
  for part_data, expected in (
    ({'dvae': 'b', 'prior': 'b'}, None),
    ({'dvae': 'a', 'prior': 'b'}, {'dvae': 'a', 'prior': 'b'}),
  ):
    bundle.save(tmp_path / 'model', config, tokenizer, params, 'b', part_data)
    info = bundle.check(tmp_path / 'model')
    assert info['data'] == 'b' and info.get('part_data') == expected


def test_records_hold_the_numbers_of_records(tmp_path):
  records = _train(tmp_path, FIRST, 'dvae')
  stored = json.loads((tmp_path / 'dvae' / 'trained_on.json').read_text())
  assert stored == {'data': 'first', 'sizes': {'train': 100}, 'tokenizer': ''}
  assert dataclasses.asdict(records._now)['sizes'] == {'train': 100}


def test_counted_ngrams_show_that_a_run_has_begun(tmp_path):
  values = PICTURES.to_dict() | {'task': 'sequence'}
  values['dvae'] |= {'pretrained': 'unused'}
  values['model'] |= {'tokens': 'image', 'kind': 'ngram', 'order': 1}
  config = Config.from_dict(values)
  for name, is_ngrams_only in (('trained_on.json', True), ('checkpoints/3', False)):
    space = Workspace(str(tmp_path / name), config)
    assert not picture_data._has_begun(config, space)
    (space.path / 'sequence' / name).mkdir(parents=True)
    assert picture_data._has_begun(config, space)
    assert picture_data._has_begun(PICTURES, space) != is_ngrams_only


def test_hosts_that_read_different_data_are_refused(tmp_path, monkeypatch):
  texts = {}
  monkeypatch.setattr(hosts, 'check_same', lambda text, what, advice: texts.update({text: (what, advice)}))
  for data in (FIRST, OTHER):
    _records(tmp_path, data).check_data()
  assert list(texts) == ['fingerprint first (100 train)', 'fingerprint other (91 train)']
  assert 'config.data.path' in texts['fingerprint first (100 train)'][1]
