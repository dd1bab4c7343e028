import numpy as np
import pytest
from PIL import Image
from web_page import NASTY, Page

from dalle_jax.config import Config
from dalle_jax.reporting import blocks, html
from dalle_jax.reporting.blocks import format_number, inline_picture, paragraph, titled
from dalle_jax.reporting.curves import curve_svg

SUMMARY = {
  'dvae/loss': -1.23456789,
  'dvae/psnr': 24.0,
  'prompts/held_out/all': 0.8125,
  'total': 123456.75,
  'lost': None,
}


def write(path, **changes):
  steps = np.arange(3)
  values = {
    'title': 'A run',
    'summary': SUMMARY,
    'config': Config().to_dict(),
    'curves': [(title, curve_svg({'a': (steps, steps * 1.0)}, title, 'y')) for title in ('one', 'two')],
    'blocks': [('Samples', '<p>a <b>block</b></p>')],
    'notes': ['A note.'],
  }
  html.write_report(path, **(values | changes))
  return Page(path.read_text(encoding='utf-8'))


def test_scores_are_exact_and_grouped_by_prefix(tmp_path):
  page = write(tmp_path / 'report.html')
  exact = [data.attrs['value'] for data in page.of('data')]
  assert exact == ['-1.23456789', '24.0', '0.8125', '123456.75', '']
  assert page.text('data') == ['-1.235', '24', '0.8125', '123,457', '–']
  captions = page.text('caption')
  assert captions[:2] == ['dvae', 'prompts/held_out']
  assert page.text('th')[:5] == ['loss', 'psnr', 'all', 'total', 'lost']


@pytest.mark.parametrize(
  ('value', 'shown'),
  [
    (0.0, '0'),
    (16384.0, '16,384'),
    (0.0003, '0.0003'),
    (1.5e-7, '1.5e-07'),
    (99.994, '99.99'),
    (-2.0, '-2'),
    (1234.5678, '1,235'),
    (float('nan'), '–'),
    (float('inf'), '–'),
    (1e300, '1e+300'),
    (np.float32(0.25), '0.25'),
  ],
)
def test_numbers_are_rounded_for_readers(value, shown):
  assert format_number(value) == shown


def test_standard_errors_are_beside_their_scores(tmp_path):
  summary = {
    'a/x': 1.0,
    'a/x_stderr': 0.25,
    'b/y': 2.0,
    'b_stderr/y': 0.5,
    'b/y/z': 3.0,
    'b_stderr/y/z': 0.125,
    'c_stderr': 4.0,
  }
  page = write(tmp_path / 'report.html', summary=summary, config={})
  assert page.text('td') == ['1 ± 0.25', '2 ± 0.5', '3 ± 0.125', '4']
  assert page.text('th') == ['x', 'y', 'z', 'c_stderr'] and page.text('caption') == ['a', 'b', 'b/y']


def test_intervals_are_beside_their_scores_and_the_page_says_what_they_are(tmp_path):
  summary = {'a/x': 1.0, 'a_low/x': 0.75, 'a_high/x': 1.0, 'b': 0.5, 'b_low': 0.25, 'b_high': 0.75, 'c_low': 2.0}
  page = write(tmp_path / 'report.html', summary=summary, config={})
  assert page.text('td') == ['1 (0.75 to 1)', '0.5 (0.25 to 0.75)', '2'] and page.text('th') == ['x', 'b', 'c_low']
  assert page.text('p')[:2] == ['A note.', 'Parentheses hold a 95% Wilson interval.']


def test_all_text_is_escaped(tmp_path):
  page = write(
    tmp_path / 'report.html',
    title=NASTY,
    summary={NASTY: 1.0, f'{NASTY}x/y': 2.0},
    config={NASTY: NASTY, 'group': {'key': NASTY}},
    curves=[(NASTY, '<svg></svg>')],
    blocks=[(NASTY, 'x')],
    notes=[NASTY],
    texts=[(NASTY, NASTY)],
  )
  assert not page.of('script')
  assert page.text('h1') == page.text('p') == page.text('h3') == page.text('pre') == [NASTY]
  assert page.text('td').count(NASTY) == 2 and NASTY in page.text('h2')
  shown = titled(NASTY, paragraph(NASTY, 'note') + blocks.token(NASTY, 0.5, NASTY, NASTY), 'a')
  page = Page(shown)
  assert page.text('h4') == page.text('p', 'note') == page.text('small') == [NASTY]
  (token,) = page.of('span', 'token')
  assert token.attrs['title'] == NASTY and token.text == 2 * NASTY


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
  image = inline_picture(Image.new('RGB', (2, 2)), 'a')
  page = write(tmp_path / 'report.html', blocks=[('A', image)])
  assert not {'script', 'link', 'iframe'} & {element.tag for element in page.found}
  links = page.addresses()
  assert links and all(link.startswith(('data:image/png;base64,', '#')) for link in links)
  style = ''.join(page.text('style'))
  assert 'prefers-color-scheme: dark' in style and 'url(' not in style and '@import' not in style


def test_pictures_are_embedded_without_loss():
  array = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
  (image,) = Page(inline_picture(Image.fromarray(array), NASTY)).of('img')
  assert (image.attrs['width'], image.attrs['height'], image.attrs['alt']) == ('5', '7', NASTY)
  np.testing.assert_array_equal(image.pixels(), array)


def test_blocks_are_sections_and_not_escaped(tmp_path):
  page = write(tmp_path / 'report.html', blocks=[('A & B', '<p>a <b>block</b></p>'), ('C', '<p>another</p>')])
  assert page.text('h2') == ['Scores', 'A & B', 'C', 'Curves', 'Configuration'] and page.text('b') == ['block']


def test_configuration_is_collapsed_and_complete(tmp_path):
  page = write(tmp_path / 'report.html')
  assert [details.attrs for details in page.of('details')] == [{}]
  assert {'data', 'dvae', 'dvae_training', 'prior', 'mesh'} <= set(page.text('caption'))
  names = page.text('th')
  config = Config().to_dict()
  for group in config.values():
    assert set(group) <= set(names) if isinstance(group, dict) else True
  assert 'captioned_shapes' in page.text('td')


def test_texts_are_shown_verbatim(tmp_path):
  page = write(tmp_path / 'report.html', texts=[('Sample 0', 'a <b>\n  c')])
  assert page.text('pre') == ['a <b>\n  c'] and 'Sample 0' in page.text('h3')


def test_empty_sections_have_no_heading(tmp_path):
  page = write(tmp_path / 'report.html', summary={}, config={}, curves=[], blocks=[], notes=[])
  assert page.text('h2') == [] and page.text('h1') == ['A run']
  assert len(write(tmp_path / 'report.html').text('h2')) == 4


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
  path = tmp_path / 'deep' / 'report.html'
  write(path)
  before = path.read_bytes()

  def fail(source, target):
    raise OSError('disk full')

  monkeypatch.setattr('os.replace', fail)
  with pytest.raises(OSError, match='disk full'):
    write(path, title='another')
  assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
