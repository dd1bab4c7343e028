"""Runs that choose their sizes: what is measured, stored, used again, and refused."""

import json
import pathlib
import runpy

import numpy as np
import pytest
from PIL import Image

from dalle_jax.config import Config, overrides
from dalle_jax.data import registry
from dalle_jax.data.shards.code_records import CodeFacts
from dalle_jax.jobs.choose import choosing, sizes
from dalle_jax.jobs.choose.picture_facts import MOST_PICTURES, find_facts, prefixes
from dalle_jax.jobs.train import run
from dalle_jax.planning import step_time
from dalle_jax.planning.step_time import StepTime

CONFIGS = pathlib.Path(__file__).parents[3] / 'configs'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """A folder of 30 captioned pictures of 48 x 40 pixels."""
  root = tmp_path_factory.mktemp('pictures')
  rng = np.random.default_rng(0)
  for i in range(30):
    pixels = np.full((40, 48, 3), rng.integers(0, 255, 3), np.uint8)
    Image.fromarray(pixels).save(root / f'{i}.png')
    (root / f'{i}.txt').write_text(f'card {i} of {30 - i}')
  return root


@pytest.fixture
def measured(monkeypatch):
  """The stages whose step was measured. Each step takes 50 ms, and reading takes no time."""
  stages = []

  def measure(config, stage, mesh, free):
    stages.append(stage)
    return StepTime(0.05, 1_000)

  monkeypatch.setattr(step_time, 'measure', measure)
  monkeypatch.setattr(choosing, 'find_facts', lambda *arguments: find_facts(*arguments)._replace(reading=0.0))
  return stages


def make(path, variant='', **given):
  """The configuration of the command line with flags such as {'prior.num_layers': 3}."""
  values = runpy.run_path(str(CONFIGS / 'mine.py'))['get_config'](variant)
  given = {'data.path': str(path), 'data.num_threads': 1, **given}
  values.update_from_flattened_dict(given)
  config = Config.from_dict(values)
  overrides.check(config, given)
  return overrides.with_kept_keys(config, given)


def test_the_default_number_of_threads_can_be_measured(pictures, measured, tmp_path):
  config = choosing.resolve(make(pictures, **{'data.num_threads': 0}), tmp_path, True, None)
  assert config.data.num_threads == 0 and 'dvae' in measured


def test_sizes_are_not_chosen_from_image_codes(pictures, measured, tmp_path, monkeypatch):
  codes = CodeFacts(str(pictures), 'd', 'runs/dvae/model', '', 32, 'area', (4, 4), 'center', 0)
  monkeypatch.setattr(registry, 'code_facts', lambda data: [codes])
  with pytest.raises(ValueError, match=r'holds image codes, from which no sizes .* in runs/dvae/model'):
    choosing.resolve(make(pictures), tmp_path, True, None)
  assert not measured


def stored(workdir, name='config.json'):
  return json.loads((workdir / name).read_text())


def start(workdir, *arguments, stop_after='data', **given):
  run.run(make(*arguments, **given), str(workdir), stop_after)
  return stored(workdir)


def test_values_are_chosen_once_and_printed_with_reasons(pictures, measured, tmp_path, capsys):
  first = start(tmp_path, pictures)
  printed = capsys.readouterr().out
  assert set(measured) == {'dvae', 'prior'}
  assert '  task = all: 30 of 30 pictures have captions' in printed
  assert "  data.image_size = 32: the pictures' shorter sides have 40 pixels; at least 2,000 steps of 0.05 s" in printed
  choice = stored(tmp_path, 'choice.json')
  assert choice['facts']['aspect'] == 1.2
  assert choice['measured'][0]['seconds'] == 0.05
  for key, value, reason in choice['choices']:
    assert f'  {key} = {value}: {reason}\n' in printed
    group, _, name = key.partition('.')
    assert (first[group][name] if name else first[group]) == value
  measured.clear()
  assert start(tmp_path, pictures) == first
  assert measured == []
  assert 'as chosen by an earlier start' in capsys.readouterr().out


def test_reading_counts_if_it_is_slow(pictures, measured, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(choosing, 'find_facts', lambda *arguments: find_facts(*arguments)._replace(reading=1.0))
  config = start(tmp_path, pictures)
  assert 'reading a batch takes 16 s, longer than the step of 0.05 s' in capsys.readouterr().out
  assert config['dvae_training']['num_steps'] == 500  # of 16 s
  assert stored(tmp_path, 'choice.json')['measured'][0]['reading_seconds'] == 16.0


def test_a_run_with_results_keeps_its_values(pictures, measured, tmp_path, capsys):
  first = start(tmp_path, pictures, stop_after='tokenizer')
  measured.clear()
  # Other facts, another machine, and another default of the code: the stored values are used all the same.
  values = stored(tmp_path, 'choice.json')
  (tmp_path / 'choice.json').write_text(json.dumps(values | {'request': 'other'}))
  assert start(tmp_path, pictures, stop_after='tokenizer') == first
  (tmp_path / 'choice.json').unlink()
  assert start(tmp_path, pictures, stop_after='tokenizer') == first
  assert 'of an earlier start, whose choice.json is missing' in capsys.readouterr().out
  assert measured == []
  with pytest.raises(ValueError, match=r'another configuration(.|\n)*config\.prior\.num_layers: 4 -> 3'):
    start(tmp_path, pictures, **{'prior.num_layers': 3})
  with pytest.raises(ValueError, match=r'config\.choice\.minutes: 30\.0 -> 60\.0'):
    start(tmp_path, pictures, **{'choice.minutes': 60.0})
  again = start(tmp_path, pictures, stop_after='tokenizer', **{'evaluation.num_prompts': 7})
  assert again['evaluation']['num_prompts'] == 7
  assert again['prior'] == first['prior']


def test_without_results_other_flags_are_chosen_again(pictures, measured, tmp_path, capsys):
  start(tmp_path, pictures)
  config = start(tmp_path, pictures, **{'prior.num_layers': 3, 'choice.minutes': 60.0})
  assert config['prior']['num_layers'] == 3
  assert 'prior.num_layers = 3: given' in capsys.readouterr().out
  kept = start(tmp_path, pictures, **{'prior.num_layers': 3, 'choice.minutes': 60.0})
  assert kept == config


def test_a_directory_of_another_run_is_refused_without_measuring(pictures, measured, tmp_path):
  other = runpy.run_path(str(CONFIGS / 'emoji.py'))['get_config']('tiny').to_dict()
  other['data'] |= {'path': str(pictures), 'num_threads': 1}
  run.run(Config.from_dict(other), str(tmp_path), 'tokenizer')
  before = stored(tmp_path)
  with pytest.raises(ValueError, match=r'config\.choice\.enabled: False -> True'):
    start(tmp_path, pictures)
  assert measured == []
  assert stored(tmp_path) == before


def test_a_damaged_choice_is_named(pictures, measured, tmp_path):
  start(tmp_path, pictures)
  for content in ('{"request"', '{}', '{"request": "a", "choices": [["a", 1]]}'):
    (tmp_path / 'choice.json').write_text(content)
    with pytest.raises(ValueError, match=r'choice\.json.*Remove this file'):
      start(tmp_path, pictures)


def test_pictures_without_captions(pictures, measured, tmp_path, capsys):
  bare = tmp_path / 'bare'
  bare.mkdir()
  for i in range(21):
    (bare / f'{i}.png').write_bytes((pictures / f'{i}.png').read_bytes())
  config = start(tmp_path / 'run', bare, **{'model.num_layers': 2})
  assert (config['task'], config['model']['tokens'], config['model']['num_layers']) == ('sequence', 'image', 2)
  assert 'a model of image tokens without text follows the dVAE' in capsys.readouterr().out
  with pytest.raises(ValueError, match=r'config\.prior\.num_layers is set, but config\.task=sequence does not read'):
    start(tmp_path / 'other', bare, **{'prior.num_layers': 2})
  for i in (20, 19):
    (bare / f'{i}.png').unlink()
  with pytest.raises(ValueError, match=r'19 pictures that can be used; at least 20'):
    start(tmp_path / 'few', bare)


def test_facts_are_those_of_the_pictures(pictures, tmp_path):
  from dalle_jax.config import DataConfig
  from dalle_jax.data import registry

  dataset = registry.prepare(DataConfig(source='folder', path=str(pictures)), tmp_path, needs_captions=False)
  readings = iter([100.0, 160.0])
  facts, captions, reading = find_facts(dataset, 10**6, lambda: next(readings))
  assert reading == 60 / 30
  assert (facts.pictures, facts.captioned, facts.side, facts.aspect, facts.colours) == (30, 30, 40, 1.2, 1)
  assert facts.words == 2 + 28  # card, of, and the numbers from 1 to 29; 15 is twice in one caption
  assert facts.characters == len('cardof0123456789')
  assert sorted(captions) == sorted(f'card {i} of {30 - i}' for i in range(30))
  assert MOST_PICTURES >= 30


@pytest.mark.parametrize(
  ('captions', 'shares'),
  [
    (['hand: light', 'hand: dark', 'cat', 'dog'], (0.5, 0.5)),
    (['cat: a', 'dog: a', 'sun', 'sun'], (0.0, 0.5)),
    ([], (0.0, 0.0)),
  ],
)
def test_shares_of_captions_with_the_same_beginning(captions, shares):
  assert prefixes(captions) == shares


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'choice': {'minutes': 0.0}}, 'config.choice.minutes is 0.0; it must be above 0'),
    ({'choice': {'keep': ['prior.layers']}}, "config.choice.keep names 'prior.layers'"),
    ({'choice': {'enabled': True}}, 'config.data.path is empty'),
    ({'choice': {'enabled': True}, 'task': 'reranker'}, 'sizes cannot be chosen for config.task=reranker'),
  ],
)
def test_values_of_the_group_are_checked(values, message):
  with pytest.raises(ValueError) as error:
    Config.from_dict(values)
  assert message in str(error.value)


def test_the_group_is_refused_where_nothing_is_chosen():
  config = Config()
  assert overrides.with_kept_keys(config, ['seed']) is config
  chosen = Config.from_dict({'choice': {'enabled': True, 'keep': ['seed']}, 'data': {'path': 'a'}})
  keys = ['choice.minutes', 'prior.attention_pattern[0]', 'seed', 'data.path']
  assert overrides.with_kept_keys(chosen, keys).choice.keep == ('seed', 'prior.attention_pattern', 'data.path')
  with pytest.raises(ValueError, match=r'config\.choice\.minutes is set, but this configuration does not choose sizes'):
    overrides.check(config, ['choice.minutes'])


@pytest.mark.parametrize(
  ('platform', 'kind', 'expected'),
  [('gpu', 'Tesla T4', ('T4', False)), ('gpu', 'NVIDIA H200', ('H200', True)), ('gpu', 'Other', ('Other', False)),
   ('tpu', 'TPU v9', ('TPU v9', True)), ('cpu', 'cpu', ('cpu', False))],
)  # fmt: skip
def test_devices_are_described(platform, kind, expected, monkeypatch):
  class Device:
    device_kind = kind

  Device.platform = platform

  class Mesh:
    devices = np.asarray([Device()])

  monkeypatch.setattr(choosing.sharding, 'batch_divisor', lambda mesh: 1)
  machine = choosing.machine_of(Mesh)
  assert machine == sizes.Machine(platform, expected[0], 1, 1, expected[1])


@pytest.mark.slow
def test_a_tiny_run_trains_and_reports_its_choice(pictures, tmp_path):
  scores = run.run(make(pictures, 'tiny'), str(tmp_path))
  assert 'reconstruction/psnr' in scores
  report = (tmp_path / 'report.html').read_text()
  assert 'Chosen sizes and steps' in report
  assert 'config.tokenizer.text_length' in report
  assert run.run(make(pictures, 'tiny'), str(tmp_path)).keys() == scores.keys()


@pytest.mark.slow
def test_a_tiny_run_without_captions_draws_pictures(pictures, tmp_path):
  bare = tmp_path / 'bare'
  bare.mkdir()
  for i in range(30):
    (bare / f'{i}.png').write_bytes((pictures / f'{i}.png').read_bytes())
  scores = run.run(make(bare, 'tiny'), str(tmp_path / 'run'))
  assert 'reconstruction/psnr' in scores
  assert (tmp_path / 'run' / 'samples.png').exists()
