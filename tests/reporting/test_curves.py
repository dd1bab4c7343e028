import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from dalle_jax.reporting import curves


def line(values=(1.0, 2.0, 3.0)):
  return np.arange(len(values)) * 10, np.asarray(values, float)


def test_metrics_are_grouped_by_name_and_a_cut_off_line_is_skipped(tmp_path):
  lines = [
    {'step': 10, 'time': 1.5, 'loss': 3.0},
    {'step': 10, 'time': 1.6, 'eval/loss': 4.0},
    {'step': 30, 'time': 3.0, 'loss': None},
    {'step': 20, 'time': 2.0, 'loss': 2.5},
    {'step': 20, 'time': 2.5, 'loss': 2.0},
  ]
  path = tmp_path / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(values) + '\n' for values in lines) + '{"step": 40, "loss": 1', encoding='utf-8')
  metrics = curves.read_metrics(path)
  assert set(metrics) == {'loss', 'eval/loss'}
  np.testing.assert_array_equal(metrics['loss'][0], [10, 20, 30])
  np.testing.assert_array_equal(metrics['loss'][1], [3.0, 2.0, np.nan])
  np.testing.assert_array_equal(metrics['eval/loss'], [[10], [4.0]])


def test_an_empty_file_has_no_series(tmp_path):
  (tmp_path / 'metrics.jsonl').touch()
  assert curves.read_metrics(tmp_path / 'metrics.jsonl') == {}


def test_svg_is_one_well_formed_element_without_style_rules():
  svg = curves.curve_svg({'a & <b>': line(), 'c': line()}, 'Loss <1> & "x"', 'nats')
  root = ET.fromstring(svg)
  assert root.tag == '{http://www.w3.org/2000/svg}svg' and root.get('viewBox')
  assert root.get('aria-label') == 'Loss <1> & "x"'
  texts = {''.join(element.itertext()).strip() for element in root.iter('{http://www.w3.org/2000/svg}text')}
  assert {'a & <b>', 'c', 'nats', 'step', 'Loss <1> & "x"'} <= texts
  assert '<style' not in svg and '<metadata' not in svg and svg.startswith('<svg')
  assert not re.search(r'href="(?!#)', svg)


def test_text_takes_the_colour_of_the_page():
  svg = curves.curve_svg({'a': line()}, 'T', 'y')
  assert 'currentColor' in svg and curves.INK not in svg and '#000000' not in svg and '#ffffff' not in svg


def test_svg_is_reproducible_and_shares_no_ids_with_other_titles():
  first, again, other = (curves.curve_svg({'a': line()}, title, 'y') for title in ('A', 'A', 'B'))
  assert first == again
  ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, other)]
  assert ids[0] and not ids[0] & ids[1]


def test_global_matplotlib_settings_do_not_change():
  import matplotlib

  before = dict(matplotlib.rcParams)
  curves.curve_svg({'a': line()}, 'T', 'y')
  assert dict(matplotlib.rcParams) == before


def data_path(svg, colour=curves.COLOURS[0]):
  """Points [N, 2] of the first line of a colour."""
  path = re.search(rf'<path d="([^"]+)"[^>]*style="fill: none; stroke: {colour}', svg)[1]
  return np.array(re.findall(r'[ML] (\S+) (\S+)', path), float)


def test_points_are_at_the_positions_of_their_values():
  values = np.array([1.0, 3.0, 2.0, 10.0])
  x, y = data_path(curves.curve_svg({'a': line(values)}, 'T', 'y')).T
  np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), [0, 1 / 3, 2 / 3, 1], atol=1e-4)
  np.testing.assert_allclose((y - y[0]) / (y[-1] - y[0]), (values - 1) / 9, atol=1e-4)
  _, y = data_path(curves.curve_svg({'a': line(values)}, 'T', 'y', log=True)).T
  np.testing.assert_allclose((y - y[0]) / (y[-1] - y[0]), np.log10(values), atol=1e-4)


def test_nan_is_a_gap_in_the_curve():
  svg = curves.curve_svg({'a': line([1, 2, np.nan, 3, 4])}, 'T', 'y')
  path = re.search(rf'<path d="([^"]+)"[^>]*stroke: {curves.COLOURS[0]}', svg)[1]
  assert path.count('M') == 2


@pytest.mark.parametrize('log', [False, True])
@pytest.mark.parametrize('series', [{}, {'a': line([])}, {'a': line([np.nan])}, {'a': line([-1.0, 0.0])}])
def test_svg_without_data_is_well_formed(series, log):
  ET.fromstring(curves.curve_svg(series, 'T', 'y', log=log))


def test_long_series_are_drawn_as_means_of_neighbours():
  steps, values = np.arange(100_001), np.random.default_rng(0).normal(size=100_001)
  thin_steps, thin_values = curves._thinned((steps, values))
  width = 251  # the smallest run that leaves at most 400
  assert len(thin_steps) == 399 <= curves.MAX_POINTS
  np.testing.assert_allclose(thin_steps[1], steps[width : 2 * width].mean())
  np.testing.assert_allclose(thin_values[1], values[width : 2 * width].mean())
  np.testing.assert_allclose(thin_values[-1], values[398 * width :].mean())
  assert len(curves.curve_svg({'a': (steps, values)}, 'T', 'y')) < 60_000
