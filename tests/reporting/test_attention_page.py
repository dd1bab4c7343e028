import base64
import json
import shutil
import subprocess

import numpy as np
import pytest
from web_page import NASTY, Page

from dalle_jax.reporting import attention_page
from dalle_jax.reporting.attention_page import PictureArticle
from dalle_jax.reporting.attention_script import SCRIPT

TEXT, GRID = 4, 3
LENGTH = TEXT + GRID**2
MASK = np.tri(LENGTH, dtype=bool)


def _weights(seed):
  weights = np.random.default_rng(seed).random((LENGTH, LENGTH)) * MASK
  return weights / weights.sum(axis=-1, keepdims=True)


def _tokens(size):
  rng = np.random.default_rng(5)
  return attention_page.Tokens(rng.random(size), 3 * rng.random(size), rng.integers(1, 9, size))


def _layers(offsets):
  matrices = [attention_page.Matrix('head 1', _weights(1), offsets)]
  return [attention_page.Layer('Layer 1 of 1: row', MASK, matrices)]


VIEWS = [attention_page.View('all, mean', _weights(0)), attention_page.View('layer 1 of 1 (row), head 1', _weights(1))]


def _picture(**changes):
  pixels = np.random.default_rng(2).integers(0, 256, (6, 6, 3), np.uint8)
  values = {
    'title': 'Image 0', 'image': pixels, 'original': None, 'frames': [('0 of 9', pixels), ('9 of 9', pixels)],
    'grid_size': GRID, 'text_length': TEXT, 'caption': [('red', 0), (NASTY, 1), ('(end)', 2)],
    'keys': [('start of text', [0]), ('redish', [1, 2]), ('padding', [3]), ('start of image', [4])], 'words': [1],
    'word_maps': np.ones((1, GRID, GRID)), 'chosen': 4, 'chosen_map': np.full((GRID, GRID), 0.01),
    'tokens': _tokens(LENGTH), 'views': VIEWS, 'layers': _layers(np.ones((GRID, 2 * GRID - 1))),
  }  # fmt: skip
  return PictureArticle(**{**values, **changes})


def _text(**changes):
  pieces = [NASTY, *(f' w{i}' for i in range(LENGTH - 1))]
  values = {'title': 'Text 0', 'pieces': pieces, 'given': 2, 'tokens': _tokens(LENGTH), 'views': VIEWS}
  return attention_page.Text(**{**values, 'layers': _layers(None), **changes})


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  path = tmp_path_factory.mktemp('page') / 'attention.html'
  attention_page.write(path, f'Attention: {NASTY}', ['A note.'], [_picture(), _text()])
  return Page(path.read_text())


def _unpack(packed):
  roots = np.frombuffer(base64.b64decode(packed), np.uint8)
  weights = np.zeros((LENGTH, LENGTH))
  weights[np.tril_indices(LENGTH)] = (roots / 255) ** 2
  return weights


def test_the_page_needs_no_other_files_and_escapes_all_text(page):
  addresses = page.addresses()
  assert addresses and all(address.startswith('data:image/png;base64,') for address in addresses)
  scripts = [script.attrs for script in page.of('script')]
  assert len(scripts) == 4 and sum(attrs == {} for attrs in scripts) == 1  # the palette, two sets of data, the script
  assert NASTY in page.text('h1')[0] and any(NASTY in text for text in page.text('span', 'token'))


def test_every_view_can_be_chosen_and_has_its_weights_on_the_page(page):
  picture, text = map(json.loads, page.text('script', 'data'))
  assert page.text('option') == [view.name for view in VIEWS] * 3
  for data in (picture, text):
    for view, packed in zip(VIEWS, data['views'], strict=True):
      assert len(packed) == attention_page.packed_size(LENGTH)
      np.testing.assert_allclose(_unpack(packed), view.weights, atol=0.004)
  assert picture['keys'] == [[0], [1, 2], [3], [4]] and (picture['grid'], picture['text']) == (GRID, TEXT)
  assert picture['rank'] == _tokens(LENGTH).rank.tolist()


def test_words_bars_maps_and_frames_are_shown_without_the_script(page):
  assert page.text('figure', 'word') == ['redishmean 100.0%, maximum 100.0%']
  row = VIEWS[0].weights[TEXT + 4]
  shares = [row[0], row[1] + row[2], row[3], row[4], 0.09]
  bars = page.text('table', 'bars')[0]
  names = ('start of text', 'redish', 'padding', 'start of image', 'image tokens')
  assert bars == ''.join(f'{name}{100 * share:.1f}%' for name, share in zip(names, shares, strict=True))
  assert [len(page.of('img', style)) for style in ('frame', 'matrix', 'offsets')] == [2, 4, 1]
  assert 'Layer 1 of 1: row' in page.text('h3')


def test_texts_of_models_without_attention_are_coloured(tmp_path):
  attention_page.write(tmp_path / 'a.html', 'Text', [], [_text(views=[], layers=[])])
  page = Page((tmp_path / 'a.html').read_text())
  assert len(page.of('span', 'token')) == 2 * LENGTH and not page.of('select') and not page.of('script', 'data')
  assert any('no attention' in text for text in page.text('p'))


def test_a_picture_file_is_shown_beside_its_reconstruction(tmp_path):
  attention_page.write(tmp_path / 'a.html', 'Picture', [], [_picture(original=np.zeros((6, 6, 3), np.uint8))])
  titles = Page((tmp_path / 'a.html').read_text()).text('h4')
  assert titles[:2] == ['original', 'decoded from its tokens']


@pytest.mark.skipif(shutil.which('node') is None, reason='runs the script of the page, with node')
def test_the_script_reads_the_weights_that_were_written(tmp_path):
  packed = attention_page.pack(VIEWS[1].weights)
  before = (
    'const document = {documentElement: {classList: {add() {}}}, getElementById: () => ({textContent: "[]"}), '
    'querySelectorAll: () => []};'
  )
  after = (
    f'const view = unpack("{packed}"), n = [...Array({LENGTH}).keys()];'
    'console.log(JSON.stringify(n.map(q => n.map(k => weight(view, q, k)))));'
  )
  (tmp_path / 'script.js').write_text(before + SCRIPT.replace("'use strict';", '') + after)
  run = subprocess.run(['node', tmp_path / 'script.js'], capture_output=True, text=True, timeout=60, check=False)
  assert run.returncode == 0, run.stderr
  np.testing.assert_allclose(json.loads(run.stdout), VIEWS[1].weights, atol=0.004)
