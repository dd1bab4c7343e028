import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from random_models import PICTURES, caption_tokenizer, save_random

import dalle_jax
from dalle_jax import bundle, files, integrity
from dalle_jax.config import Config
from dalle_jax.jobs.draw import drawn_files, generation
from dalle_jax.jobs.draw.again import draw_again
from dalle_jax.jobs.draw.generation import draw, read_prompts
from dalle_jax.jobs.draw.given_picture import InputPicture
from dalle_jax.reporting import sheets
from dalle_jax.sampling.draw_settings import DrawSettings

CONFIG = Config.from_dict({**PICTURES, 'sampling': {'temperature': 0.9, 'batch_size': 2}})
PROMPTS = ['A red circle', 'a blue square']


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model with random parameters, which generates noise."""
  return save_random(tmp_path_factory.mktemp('run') / 'model', CONFIG, caption_tokenizer())


@pytest.fixture(scope='module')
def drawn(model, tmp_path_factory):
  return _draw(model, PROMPTS, tmp_path_factory.mktemp('out'), num_images=2, seed=4)


def _draw(model, prompts, out, **values):
  names = ('given', 'index', 'reranker', 'preview_every', 'overwrite')
  options = {name: values.pop(name) for name in names if name in values}
  return draw(model, prompts, DrawSettings(**values), out=str(out), **options)


def _facts(file):
  with Image.open(file) as image:
    return json.loads(image.text['dalle_jax'])


def _pixels(files):
  return [np.asarray(Image.open(file)) for file in files]


def test_draw_writes_the_images_and_a_contact_sheet(drawn):
  assert [file.name for file in drawn] == [
    '000_a_red_circle_seed4_000.png', '000_a_red_circle_seed4_001.png',
    '001_a_blue_square_seed4_000.png', '001_a_blue_square_seed4_001.png', 'contact_sheet_a_red_circle_seed4.png',
  ]  # fmt: skip
  *pictures, sheet = _pixels(drawn)
  assert {picture.shape for picture in pictures} == {(8, 8, 3)}
  assert np.any(pictures[0] != pictures[1]) and np.any(pictures[2] != pictures[3])
  assert sheet.shape[0] >= 2 * 8 and sheet.shape[1] >= 2 * 8


def test_png_files_hold_the_prompt_and_all_settings(drawn, model):
  with Image.open(drawn[3]) as image:
    assert image.text['prompt'] == 'a blue square'
  assert _facts(drawn[3]) == {
    'seed': 4, 'temperature': 0.9, 'top_k': 0, 'top_p': 1.0, 'guidance_scale': 1.0, 'guidance_ramp': 0.0,
    'negative_prompt': '', 'truncate': False, 'batch_size': 2, 'model': bundle.check(model)['params'],
    'dalle_jax_version': dalle_jax.__version__, 'index': 1,
  }  # fmt: skip


def test_the_same_seed_gives_the_same_images_whatever_the_batch_size(drawn, model, tmp_path):
  again = _draw(model, PROMPTS, tmp_path, num_images=2, seed=4, batch_size=3)
  for a, b in zip(_pixels(drawn), _pixels(again), strict=True):
    np.testing.assert_array_equal(a, b)


def test_another_seed_or_temperature_gives_other_images(drawn, model, tmp_path):
  other = _draw(model, PROMPTS[:1], tmp_path / 'a', num_images=2, seed=5)
  assert any(np.any(a != b) for a, b in zip(_pixels(drawn[:2]), _pixels(other[:2]), strict=True))
  likeliest = _draw(model, PROMPTS[:1], tmp_path / 'b', num_images=2, seed=5, temperature=0.0)
  np.testing.assert_array_equal(*_pixels(likeliest[:2]))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_images': 0}, r'--num_images \(--keep\) is 0'),
    ({'top_p': 0.0}, r'--top_p is 0\.0'),
    ({'guidance_scale': -1.0}, r'--guidance_scale is -1'),
    ({'guidance_ramp': 2.0}, r'--guidance_ramp is 2'),
    ({'preview_every': -1}, r'--preview_every is -1'),
    ({'reranker': 'nowhere'}, r'nowhere \(--reranker\)'),
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
def test_bad_arguments_are_refused_before_any_image_is_written(model, tmp_path, monkeypatch, settings, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_text('')
  arguments = {'model': model, 'prompts': PROMPTS, 'out': 'out', 'num_images': 1} | settings
  with pytest.raises(ValueError, match=message):
    _draw(arguments.pop('model'), arguments.pop('prompts'), arguments.pop('out'), **arguments)
  assert not list(tmp_path.rglob('*.png'))


def test_an_image_is_generated_again_from_its_png_file(drawn, model, tmp_path):
  again = draw_again(model, str(drawn[3]), str(tmp_path))
  assert [file.name for file in again] == ['001_a_blue_square_seed4_001_again.png']
  np.testing.assert_array_equal(*_pixels([drawn[3], again[0]]))
  assert _facts(again[0]) == _facts(drawn[3])


@pytest.mark.parametrize(
  'changes',
  [{'top_k': 1.5}, {'seed': True}, {'index': 2**31}, {'index': -1}, {'temperature': float('nan')}, {'top_p': None},
   {'truncate': 'no'}, {'batch_size': 2.5}, {'guidance_scale': 1e39}, {'batch_size': 2**70}, {'seed': 2**70},
   {'model': 'x' * 10**6}, {'given': 'x' * 10**6}, {'top_k': [0] * 10**6}, {'negative_prompt': 5},
   {'top_k': 10**18}, {'top_k': 9}, {'prompt': '\u200b'}],
  ids=lambda changes: str(changes)[:40],
)  # fmt: skip
def test_png_files_with_changed_settings_are_refused(drawn, model, tmp_path, changes, monkeypatch):
  monkeypatch.setattr(generation, 'load', None)  # refused before the model is loaded
  text = {'prompt': changes.get('prompt', 'a'), 'dalle_jax': json.dumps(_facts(drawn[0]) | changes)}
  sheets.save_png(Image.open(drawn[0]), tmp_path / 'a.png', text)
  with pytest.raises(ValueError, match=r'--from=.*a\.png|a\.png \(--from\)') as refusal:
    draw_again(model, str(tmp_path / 'a.png'), str(tmp_path))
  assert len(str(refusal.value)) < 1000 and 'Error' not in str(refusal.value)


@pytest.mark.parametrize(
  ('text', 'problem'),
  [
    ({'dalle_jax': '[' * 10**5}, 'it nests too deep'),
    ({'dalle_jax': '{}'}, "has no setting 'seed'"),
    ({'dalle_jax': '[]'}, 'it holds an array and not a JSON object'),
    ({'dalle_jax': ''}, 'it is empty'),
    ({}, "it has no text entry 'dalle_jax'"),
    ({'dalle_jax': '{"seed": "0"}'}, 'seed is "0"; it must be a whole number'),
  ],
  ids=str,
)
def test_what_is_wrong_with_the_text_of_a_png_file_is_said_in_words(tmp_path, text, problem):
  sheets.save_png(Image.new('RGB', (8, 8)), tmp_path / 'a.png', {'prompt': 'a'} | text)
  with pytest.raises(ValueError, match=r'a\.png is not a PNG file written by .* Name an unchanged') as refusal:
    draw_again('nowhere', str(tmp_path / 'a.png'), str(tmp_path))
  assert problem in str(refusal.value) and 'Error' not in str(refusal.value)


@pytest.mark.parametrize('content', [b'', b'%!PS', b'\x89PNG\r\n\x1a\n' + bytes(9)])
def test_broken_files_are_not_generated_again(tmp_path, content):
  (tmp_path / 'a.png').write_bytes(content)
  with pytest.raises(ValueError, match=r'--from .*a\.png cannot be read: cannot decode'):
    draw_again('nowhere', str(tmp_path / 'a.png'), str(tmp_path))


def test_another_seed_adds_files_and_no_file_is_replaced_unasked(model, tmp_path, monkeypatch):
  first = _draw(model, PROMPTS, tmp_path, num_images=1, candidates=2, preview_every=4)
  contents = {file: file.read_bytes() for file in tmp_path.rglob('*.*')}
  other = _draw(model, PROMPTS, tmp_path, num_images=1, candidates=2, seed=1, preview_every=4)
  assert not set(first) & set(other)
  assert all(file.read_bytes() == content for file, content in contents.items())
  with monkeypatch.context() as patch, pytest.raises(ValueError, match=r'seed0_000\.png exists; .* --overwrite'):
    patch.setattr(generation, 'load', None)  # refused before the model is loaded
    _draw(model, PROMPTS, tmp_path, num_images=1)
  first[0].unlink(), first[1].unlink()  # the page and the sheet are refused too
  with pytest.raises(ValueError, match=r'candidates_a_red_circle_seed0\.html exists'):
    _draw(model, PROMPTS, tmp_path, num_images=1, candidates=2)
  with pytest.raises(ValueError, match=r'contact_sheet_a_red_circle_seed0\.png exists'):
    _draw(model, PROMPTS, tmp_path, num_images=1)
  (tmp_path / 'contact_sheet_a_red_circle_seed0.png').unlink()
  with monkeypatch.context() as patch, pytest.raises(ValueError, match=r'previews/a_red_circle_seed0_.*\.png exists'):
    patch.setattr(generation, 'load', None)
    _draw(model, PROMPTS, tmp_path, num_images=1, preview_every=4)
  again = _draw(model, PROMPTS, tmp_path, num_images=1, candidates=2, preview_every=4, overwrite=True)
  assert again == first
  assert all(file.read_bytes() == content for file, content in contents.items() if file.suffix == '.png')


def test_what_cannot_fit_in_memory_or_on_the_disk_is_refused_before_the_model_is_loaded(model, tmp_path, monkeypatch):
  monkeypatch.setattr(generation, 'load', None)
  with pytest.raises(ValueError, match=r'--num_images or --candidates is 3000000000; it must be below 2\^31'):
    _draw(model, PROMPTS, tmp_path, num_images=3_000_000_000)
  with pytest.raises(ValueError, match=r'4,000,000,000 images of 8 x 8 pixels take .* GB of memory'):
    _draw(model, PROMPTS, tmp_path, num_images=2_000_000_000)
  monkeypatch.setattr(files.shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
  with pytest.raises(ValueError, match=r'--out .* takes at least 0 MB, but only 0 MB are free'):
    _draw(model, PROMPTS, tmp_path, num_images=1)
  with pytest.raises(ValueError, match='--out is empty'):
    _draw(model, PROMPTS, '', num_images=1)


@pytest.mark.parametrize(
  ('prompt', 'message'),
  [
    ('a \udcff', 'not valid UTF-8'),
    ('a\0b', 'NUL character'),
    ('\u200b\u3164\ufe0f', 'shows nothing'),
    ('a' * 100_001, '100,001 char'),
  ],
)
def test_prompts_that_no_model_can_read_are_refused(prompt, message, tmp_path):
  with pytest.raises(ValueError, match=rf'{message}.*--prompt'):
    read_prompts([prompt], '')
  with pytest.raises(ValueError, match=rf'{message}.*--negative_prompt'):
    DrawSettings(negative_prompt=prompt)
  (tmp_path / 'a').write_text(prompt, 'utf-8', 'surrogatepass')
  with pytest.raises(ValueError, match=r'--prompts_file'):
    read_prompts([], str(tmp_path / 'a'))


def test_a_large_contact_sheet_is_cut_and_an_old_page_of_candidates_is_removed(model, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(drawn_files, 'SHEET_IMAGES', 2)
  page = tmp_path / 'candidates_a_red_circle_seed0.html'
  page.write_text('of other images')
  files = _draw(model, PROMPTS, tmp_path, num_images=2)
  assert len(files) == 5 and 'shows only the first 2 of 4 images' in caplog.text
  assert not page.exists()


def test_a_guided_candidate_is_generated_again_from_its_png_file(model, tmp_path):
  settings = {'num_images': 2, 'candidates': 5, 'guidance_scale': 3.0, 'guidance_ramp': 0.5, 'top_p': 0.9}
  files = _draw(model, PROMPTS[:1], tmp_path, **settings, negative_prompt='a blue square')
  pages = ['candidates_a_red_circle_seed0.html', 'contact_sheet_a_red_circle_seed0.png']
  assert [file.name for file in files[2:]] == pages
  facts = [_facts(file) for file in files[:2]]
  assert [fact['candidates'] for fact in facts] == [5, 5] and facts[0]['score'] >= facts[1]['score']
  again = draw_again(model, str(files[1]), str(tmp_path / 'again'))
  np.testing.assert_array_equal(*_pixels([files[1], again[0]]))


@pytest.fixture
def picture(tmp_path):
  file = tmp_path / 'given.png'
  Image.fromarray(np.random.default_rng(2).integers(256, size=(8, 8, 3), dtype=np.uint8)).save(file)
  return str(file)


def test_a_completion_is_generated_again_only_with_the_same_input_image(model, picture, tmp_path):
  given = InputPicture(image=picture, redraw_box=(0.0, 0.3, 1.0, 0.6))
  files = _draw(model, PROMPTS[:1], tmp_path / 'a', num_images=1, given=given)
  assert _facts(files[0])['candidates'] == 8
  again = draw_again(model, str(files[0]), str(tmp_path / 'b'), given)
  np.testing.assert_array_equal(*_pixels([files[0], again[0]]))
  for other in (None, InputPicture(image=picture, keep_top=0.5)):
    with pytest.raises(ValueError, match=r'was generated from the input image .*--image'):
      draw_again(model, str(files[0]), str(tmp_path / 'c'), other)


def test_images_from_elsewhere_or_from_another_model_are_not_generated_again(drawn, model, picture, tmp_path):
  with pytest.raises(ValueError, match=r'--from=.*given\.png is not a PNG file written by'):
    draw_again(model, picture, str(tmp_path))
  shutil.copytree(model, tmp_path / 'other')
  info = json.loads((tmp_path / 'other/bundle.json').read_text())
  (tmp_path / 'other/bundle.json').write_text(integrity.with_checksum(info | {'params': 'another'}))
  with pytest.raises(ValueError, match=r"was generated by the model '\w+', but .*other \(--model\) is 'another'"):
    draw_again(str(tmp_path / 'other'), str(drawn[0]), str(tmp_path))


def test_previews_that_cannot_be_written_are_found_before_the_model_is_loaded(model, tmp_path, monkeypatch):
  (tmp_path / 'previews').touch()
  monkeypatch.setattr(generation, 'load', None)
  with pytest.raises(ValueError, match=r'--out .*previews cannot be made or written'):
    _draw(model, PROMPTS, tmp_path, num_images=1, preview_every=4)


def test_previews_are_written_row_by_row(model, tmp_path):
  _draw(model, PROMPTS, tmp_path, num_images=2, batch_size=3, preview_every=3)
  names = sorted(file.name for file in (tmp_path / 'previews').iterdir())
  assert names == [f'a_red_circle_seed0_{first:06d}_row_{row:03d}.png' for first in (0, 3) for row in (3, 4)]


def test_a_warning_shows_what_is_left_of_a_truncated_prompt(model, tmp_path, caplog):
  _draw(model, ['red circle ' * 9], tmp_path, num_images=1, truncate=True)
  (message,) = [record.getMessage() for record in caplog.records if 'is cut' in record.getMessage()]
  assert 'is cut to 5 tokens: ' in message and 'red' in message


def test_prompts_of_the_flag_come_before_prompts_of_the_file(tmp_path):
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
  with pytest.raises(ValueError, match='not valid UTF-8'):
    read_prompts(['a red circle \udcff'], '')


@pytest.mark.parametrize(('prompts', 'message'), [([], 'No prompt was given'), (['a', ' '], 'A prompt is empty')])
def test_errors_tell_a_missing_prompt_from_an_empty_one(prompts, message):
  with pytest.raises(ValueError, match=message):
    read_prompts(prompts, '')
