import numpy as np
from web_page import NASTY, Page

from dalle_jax.reporting import heat, likelihood_maps

NATS = np.array([[0.0, 1.0], [4.0, 0.25]])
IMAGE = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)


def _reading(**changes):
  values = {'title': 'a', 'image': IMAGE, 'nats': NATS, 'caption': [('red', 0.5), (NASTY, 2.0), ('(end)', 0.0)]}
  return likelihood_maps.Reading(**{**values, **changes})


def _page(*readings):
  page = Page(likelihood_maps.maps(readings))
  maps, lit = ([image.pixels() for image in page.of('img', style)] for style in ('map', 'lit'))
  return page, maps, lit


def test_maps_show_square_roots_of_nats_on_a_shared_scale():
  page, maps, lit = _page(_reading(), _reading(nats=4 * NATS, title=NASTY))
  np.testing.assert_array_equal(maps[0], heat.colours(np.array([[0, 0.25], [0.5, 0.125]]), 1.0))
  np.testing.assert_array_equal(maps[1], heat.colours(np.array([[0, 0.5], [1.0, 0.25]]), 1.0))
  np.testing.assert_array_equal(lit[1][2:, :2], IMAGE[2:, :2])
  np.testing.assert_allclose(lit[0][2:, :2], (heat.DARK + (1 - heat.DARK) / 2) * IMAGE[2:, :2], atol=0.51)
  assert page.text('h4') == ['a', NASTY]
  assert page.text('p', 'note')[0].split() == 'Image tokens: 0 16.00 nats; the middle is 4.00 nats'.split()
  assert 'image 5.25 nats, 1.31 per token, maximum 4.00; caption 2.50 nats' in page.text('p', 'note')


def test_caption_tokens_with_more_nats_have_a_stronger_colour():
  page, _, _ = _page(_reading(), _reading(caption=[('blue', 4.0)]))
  tokens = page.of('span', 'token')
  assert page.text('span', 'token') == ['red0.50', f'{NASTY}2.00', '(end)0.00', 'blue4.00']
  depths = [float(token.attrs['style'].split(',')[-1].rstrip(')')) for token in tokens]
  np.testing.assert_allclose(depths, 0.75 * np.array([0.125, 0.5, 0.0, 1.0]), atol=0.006)
  assert tokens[0].attrs['title'] == '0.50 nats' and 'strongest is 4.00 nats' in page.text('p', 'note')[1]


def test_infinite_and_zero_nats_and_missing_captions_are_shown():
  impossible = np.array([[np.inf, 1.0], [0.0, 0.0]])
  page, maps, _ = _page(_reading(nats=impossible, caption=()), _reading(nats=np.zeros((2, 2)), caption=()))
  np.testing.assert_array_equal(maps[0], heat.colours(np.array([[1.0, 1.0], [0, 0]]), 1.0))
  assert not page.of('span') and len(page.text('p', 'note')) == 3
  assert page.text('p', 'note')[1:] == [
    'image ∞ nats, ∞ per token, maximum ∞', 'image 0.00 nats, 0.00 per token, maximum 0.00'
  ]  # fmt: skip
