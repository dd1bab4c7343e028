import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dalle_jax.config import Config
from dalle_jax.reporting import html
from dalle_jax.reporting.curves import curve_svg

VOID = {'meta', 'img', 'br', 'link', 'input'}
SUMMARY = {
  'dvae/loss': -1.23456789,
  'dvae/psnr': 24.0,
  'prompts/held_out/all': 0.8125,
  'total': 123456.75,
  'lost': None,
}


class Page(HTMLParser):
  """Collects tags, attributes, text by tag, and checks that elements nest."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.texts = [], [], []
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open:
      self.texts.append((self.open[-1], data))

  def text(self, tag):
    return [data for name, data in self.texts if name == tag]


def write(path, **changes):
  steps = np.arange(3)
  values = {
    'title': 'A run',
    'summary': SUMMARY,
    'config': Config().to_dict(),
    'curves': [(title, curve_svg({'a': (steps, steps * 1.0)}, title, 'y')) for title in ('one', 'two')],
    'pictures': [('Samples', 'two pictures', Image.new('RGB', (8, 6), (1, 2, 3)))],
    'notes': ['A note.'],
  }
  html.write_report(path, **(values | changes))
  return Page(path.read_text(encoding='utf-8'))


def test_scores_are_the_numbers_given_grouped_by_prefix(tmp_path):
  page = write(tmp_path / 'report.html')
  exact = [attrs['value'] for tag, attrs in page.tags if tag == 'data']
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
def test_numbers_are_shown_as_people_read_them(value, shown):
  assert html.format_number(value) == shown


def test_everything_from_outside_is_escaped(tmp_path):
  evil = '<script>alert("1")</script> & \'"'
  page = write(
    tmp_path / 'report.html',
    title=evil,
    summary={evil: 1.0, f'{evil}x/y': 2.0},
    config={evil: evil, 'group': {'key': evil}},
    curves=[(evil, '<svg></svg>')],
    pictures=[(evil, evil, Image.new('RGB', (2, 2)))],
    notes=[evil],
  )
  assert not [tag for tag, _ in page.tags if tag == 'script']
  assert page.text('figcaption') == page.text('h1') == page.text('p') == page.text('h3') == [evil]
  assert page.text('td').count(evil) == 2


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
  page = write(tmp_path / 'report.html')
  assert not {'script', 'link', 'iframe'} & {tag for tag, _ in page.tags}
  links = [attrs[name] for _, attrs in page.tags for name in ('src', 'href', 'xlink:href') if name in attrs]
  assert links and all(link.startswith(('data:image/png;base64,', '#')) for link in links)
  style = ''.join(page.text('style'))
  assert 'prefers-color-scheme: dark' in style and 'url(' not in style and '@import' not in style


def test_pictures_are_embedded_whole(tmp_path):
  array = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
  page = write(tmp_path / 'report.html', pictures=[('A', 'b', Image.fromarray(array))])
  (attrs,) = [attrs for tag, attrs in page.tags if tag == 'img']
  assert (attrs['width'], attrs['height'], attrs['alt']) == ('5', '7', 'A')
  image = Image.open(io.BytesIO(base64.b64decode(attrs['src'].split(',')[1])))
  np.testing.assert_array_equal(np.asarray(image), array)


def test_configuration_is_folded_and_complete(tmp_path):
  page = write(tmp_path / 'report.html')
  assert [attrs for tag, attrs in page.tags if tag == 'details'] == [{}]
  assert {'data', 'dvae', 'dvae_training', 'prior', 'mesh'} <= set(page.text('caption'))
  names = page.text('th')
  config = Config().to_dict()
  for group in config.values():
    assert set(group) <= set(names) if isinstance(group, dict) else True
  assert 'captioned_shapes' in page.text('td')


def test_texts_are_shown_as_they_are(tmp_path):
  page = write(tmp_path / 'report.html', texts=[('Sample 0', 'a <b>\n  c')])
  assert page.text('pre') == ['a <b>\n  c'] and 'Sample 0' in page.text('h3')


def test_empty_parts_have_no_heading(tmp_path):
  page = write(tmp_path / 'report.html', summary={}, config={}, curves=[], pictures=[], notes=[])
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


def write_metrics(path, *lines):
  path.parent.mkdir(parents=True)
  path.write_text(''.join(json.dumps({'time': 0.0, **values}) + '\n' for values in lines), encoding='utf-8')


def test_run_curves_draws_only_what_has_data(tmp_path):
  assert html.run_curves(tmp_path) == []
  write_metrics(
    tmp_path / 'dvae' / 'metrics.jsonl',
    {'step': 1, 'loss': 2.0, 'temperature': None, 'unknown': 1.0},
    {'step': 2, 'loss': 1.0, 'temperature': None},
    {'step': 2, 'eval/psnr_hard': 20.0},
  )
  drawn = dict(html.run_curves(tmp_path))
  assert list(drawn) == ['dVAE: loss', 'dVAE: PSNR']
  assert 'relaxed codes' not in drawn['dVAE: PSNR']
  write_metrics(tmp_path / 'prior' / 'metrics.jsonl', {'step': 1, 'eval/image_bits_per_dim': 0.5, 'loss': 1.0})
  assert [title for title, _ in html.run_curves(tmp_path)][2:] == ['Prior: loss', 'Prior: image bits per dimension']


def test_every_curve_is_drawn_from_a_full_run(tmp_path):
  for stage, (_, found) in html.STAGES.items():
    metrics = {metric: 1.0 for curve in found for metric in curve.series.values()}
    write_metrics(tmp_path / stage / 'metrics.jsonl', {'step': 1, **metrics}, {'step': 2, **metrics})
  drawn = html.run_curves(tmp_path)
  assert len(drawn) == sum(len(found) for _, found in html.STAGES.values())
  assert len({title for title, _ in drawn}) == len(drawn)
