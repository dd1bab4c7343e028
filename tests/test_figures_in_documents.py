"""Figures in README.md and docs/ equal the measured ones in docs/measured."""

import pathlib
import re

import measured_figures
import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = ['README.md', *(f'docs/{path.name}' for path in sorted((ROOT / 'docs').glob('*.md')))]
TABLES = measured_figures.read_tables(ROOT / 'docs' / 'measured')


def _text(name):
  return (ROOT / name).read_text(encoding='utf-8')


@pytest.mark.parametrize('name', DOCUMENTS)
def test_marked_figures_are_the_measured_ones(name):
  wrong, _ = measured_figures.problems(_text(name), TABLES)
  assert not wrong, '\n'.join(wrong)


def test_every_measured_table_is_shown_and_quoted_figures_refer_to_it():
  used = set().union(*(measured_figures.problems(_text(name), TABLES)[1] for name in DOCUMENTS))
  assert used == set(TABLES)


def test_all_percentages_and_decibels_of_the_readmes_results_are_marked():
  (results,) = re.findall(r'\n## Results\n(.*?)\n## ', _text('README.md'), re.DOTALL)
  assert not measured_figures.unmarked(results)


TABLE = {'columns': ['run', 'psnr', 'right'], 'rows': [['0', 46.849, 0.9951], ['median', 45.0, [0.5, 0.43, 0.57]]]}
SHOWN = """<!-- table: a.runs -->
| run | PSNR | right |
|---|---|---|
| 0 | 46.8 dB | 99.5% |
| median | 45 | 50% (43% to 57%) |
"""


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('<!-- figure: a.runs[0][psnr] -->46.8 dB and <!-- figure: a.runs[0][right] -->99.5%', ''),
    ('<!-- figure: a.runs[median][right] -->50%', ''),
    (SHOWN, ''),
    ('<!-- figure: a.runs[0][psnr] -->46.9 dB', '46.9 is written, 46.849 was measured'),
    ('<!-- figure: a.runs[0][psnr] -->47 dB', ''),
    ('<!-- figure: a.runs[0][right] -->99.5', '99.5 is written, 0.9951 was measured'),
    ('<!-- figure: a.runs[0][right] -->99.6%', '99.6% is written'),
    ('<!-- figure: a.runs[1][psnr] -->46.8', 'no such row or column'),
    ('<!-- figure: b.runs[0][psnr] -->46.8', 'no such table'),
    ('<!-- figure: a.runs[0][psnr] -->about', 'no number follows'),
    (SHOWN.replace('46.8', '46.7'), "row 0, psnr: '46.7 dB' is written"),
    (SHOWN.replace('57%', '58%'), 'row median, right'),
    (SHOWN.replace('| median', '| mean'), 'row median, run'),
    ('A text\n<!-- figure: a.runs[0][psnr] -->46.8 dB', 'a mark at the start of a line'),
    ('<!-- table: a.runs -->\nText.', '2 rows of 3 cells must follow'),
  ],
)
def test_the_comparison_finds_wrong_figures(text, message):
  wrong, used = measured_figures.problems(text, {'a.runs': TABLE})
  assert bool(wrong) == bool(message) and message in ''.join(wrong)
  assert used == ({'a.runs'} if 'a.runs' in text else set())


@pytest.mark.parametrize(
  ('shown', 'stored', 'agree'),
  [('1,557', 1557, True), ('1,558', 1557, False), ('-2.57', -2.5739, True), ('1e5', 1.04e5, True),
   ('0.04', 0.038, True), ('0.23', 0.038, False), ('100%', 0.9951, True), ('99%', 0.9951, False)],
)  # fmt: skip
def test_numbers_agree_within_rounding(shown, stored, agree):
  assert measured_figures.agrees(shown, stored) == agree


def test_numbers_without_a_mark_are_found():
  assert measured_figures.unmarked('PSNR 46.8 dB, <!-- figure: a.b[0][c] -->99% and 61.5% of 200') == [
    '46.8 dB',
    '61.5%',
  ]
