import json

import numpy as np
import pytest
from PIL import Image
from random_models import PICTURES, caption_tokenizer, save_random

from dalle_jax import bundle
from dalle_jax.config import Config
from dalle_jax.pipeline.draw import draw, read_prompts

CONFIG = Config.from_dict({**PICTURES, 'sampling': {'temperature': 0.9, 'batch_size': 2}})
PROMPTS = ['A red circle', 'a blue square']


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model of random parameters, which draws noise."""
  return save_random(tmp_path_factory.mktemp('run') / 'model', CONFIG, caption_tokenizer())


@pytest.fixture(scope='module')
def drawn(model, tmp_path_factory):
  return draw(model, PROMPTS, out=str(tmp_path_factory.mktemp('out')), num_images=2, seed=4)


def _pixels(files):
  return [np.asarray(Image.open(file)) for file in files]


def test_pictures_and_a_sheet_are_written(drawn):
  assert [file.name for file in drawn] == [
    '000_a_red_circle_000.png', '000_a_red_circle_001.png', '001_a_blue_square_000.png', '001_a_blue_square_001.png',
    'contact_sheet.png',
  ]  # fmt: skip
  *pictures, sheet = _pixels(drawn)
  assert {picture.shape for picture in pictures} == {(8, 8, 3)}
  assert len({picture.tobytes() for picture in pictures}) == 4
  assert sheet.shape[0] >= 2 * 8 and sheet.shape[1] >= 2 * 8


def test_pictures_tell_how_they_were_drawn(drawn, model):
  with Image.open(drawn[3]) as image:
    assert image.text['prompt'] == 'a blue square'
    facts = json.loads(image.text['dalle_jax'])
  fingerprint = bundle.check(model)['params']
  assert facts == {
    'seed': 4, 'temperature': 0.9, 'top_k': 0, 'model': fingerprint, 'batch_size': 2, 'index': 3,
  }  # fmt: skip


def test_the_same_seed_draws_the_same_pictures_in_batches_of_any_size(drawn, model, tmp_path):
  again = draw(model, PROMPTS, out=str(tmp_path), num_images=2, seed=4, batch_size=3)
  for a, b in zip(_pixels(drawn), _pixels(again), strict=True):
    np.testing.assert_array_equal(a, b)


def test_another_seed_and_other_settings_draw_other_pictures(drawn, model, tmp_path):
  other = draw(model, PROMPTS[:1], out=str(tmp_path / 'a'), num_images=2, seed=5)
  assert any(np.any(a != b) for a, b in zip(_pixels(drawn[:2]), _pixels(other[:2]), strict=True))
  likeliest = draw(model, PROMPTS[:1], out=str(tmp_path / 'b'), num_images=2, seed=5, temperature=0.0)
  np.testing.assert_array_equal(*_pixels(likeliest[:2]))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_images': 0}, r'--num_images is 0'),
    ({'seed': -1}, r'--seed is -1'),
    ({'seed': 2**31}, r'--seed is 2147483648'),
    ({'batch_size': 0}, r'--batch_size is 0'),
    ({'temperature': -0.5}, r'--temperature is -0\.5'),
    ({'top_k': -1}, r'--top_k is -1'),
    ({'top_k': 9}, r'top_k 9 is more than the 8 image tokens'),
    ({'prompts': ['a red circle', ' ']}, r'empty'),
    ({'prompts': ['a red circle ' * 9]}, r'takes at most 5; shorten it, or cut it off with --truncate'),
    ({'model': 'nowhere'}, r'no model directory at nowhere'),
    ({'out': 'file/out'}, r'--out file/out cannot be made'),
  ],
)
def test_mistakes_are_refused(model, tmp_path, monkeypatch, settings, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_text('')
  arguments = {'model': model, 'prompts': PROMPTS, 'out': 'out', 'num_images': 1, 'seed': 0} | settings
  with pytest.raises(ValueError, match=message):
    draw(arguments.pop('model'), arguments.pop('prompts'), **arguments)
  assert not list(tmp_path.rglob('*.png'))


def test_a_prompt_that_is_cut_is_named(model, tmp_path, caplog):
  draw(model, ['red circle ' * 9], out=str(tmp_path), num_images=1, seed=0, truncate=True)
  (message,) = [record.getMessage() for record in caplog.records if 'is cut' in record.getMessage()]
  assert 'is cut to 5 and reads' in message and 'red' in message


def test_prompts_come_from_flags_then_from_the_file(tmp_path):
  file = tmp_path / 'prompts.txt'
  file.write_text('two\n\n  drei und ä \n', encoding='utf-8')
  assert read_prompts(['one'], str(file)) == ['one', 'two', 'drei und ä']
  assert read_prompts(['one'], '') == ['one']


def test_prompts_that_are_missing_empty_or_unreadable_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'--prompt=.*--prompts_file'):
    read_prompts([], '')
  with pytest.raises(ValueError, match='empty'):
    read_prompts(['one', '  '], '')
  with pytest.raises(ValueError, match=r'--prompts_file .*missing\.txt cannot be read'):
    read_prompts([], str(tmp_path / 'missing.txt'))
  (tmp_path / 'binary').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(ValueError, match='cannot be read'):
    read_prompts([], str(tmp_path / 'binary'))
  (tmp_path / 'blank').write_text('\n\n')
  with pytest.raises(ValueError, match='No prompt'):
    read_prompts([], str(tmp_path / 'blank'))


@pytest.mark.parametrize(('prompts', 'message'), [([], 'No prompt was given'), (['a', ' '], 'A prompt is empty')])
def test_prompts_that_are_missing_or_empty_are_named(prompts, message):
  with pytest.raises(ValueError, match=message):
    read_prompts(prompts, '')
