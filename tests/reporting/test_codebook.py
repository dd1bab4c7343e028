import re

import numpy as np
from web_page import Page

from dalle_jax.reporting import codebook


def test_codes_are_ranked_by_how_often_they_occur():
  ranks, counts = codebook.rank_frequency(np.array([3, 0, 10, 1, 0]))
  np.testing.assert_array_equal([ranks, counts], [[1, 2, 3], [10, 3, 1]])
  assert [len(values) for values in codebook.rank_frequency(np.zeros(4, int))] == [0, 0]


def test_many_codes_are_thinned_evenly_in_log_rank():
  counts = np.random.default_rng(0).permutation(8192) + 1
  ranks, shown = codebook.rank_frequency(counts)
  np.testing.assert_array_equal(shown, 8193 - ranks)
  assert ranks[0] == 1 and ranks[-1] == 8192 and len(ranks) <= codebook.MOST_POINTS
  np.testing.assert_array_equal(ranks[:9], range(1, 10))
  np.testing.assert_allclose(np.diff(np.log(ranks[-9:])), np.log(8192) / (codebook.MOST_POINTS - 1), rtol=0.02)


def test_the_section_has_a_summary_a_curve_and_the_most_used_codes():
  counts = np.array([1, 0, 97, 2, 0, 0, 0, 0])
  decoded = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
  block = codebook.use(counts, 1.1766, [2, 3], decoded)
  page = Page(block)
  assert page.text('p')[0].startswith(
    '3 of 8 codes are used (37.5%) in 100 tokens. The perplexity of their distribution is 1.177.'
  )
  assert page.text('figcaption') == ['2: 97.0%', '3: 2%']
  for image, pixels in zip(page.of('img'), decoded, strict=True):
    np.testing.assert_array_equal(image.pixels(), pixels)
  assert [image.attrs['alt'] for image in page.of('img')] == ['code 2', 'code 3']
  (svg,) = page.of('svg')
  assert svg.attrs['aria-label'] == codebook.TITLE and {'10', '100'} <= {text.strip() for text in page.text('text')}
  points = np.array(
    re.findall(r'[ML] (\S+) (\S+)', re.search(r'<path d="([^"]+)"[^>]*stroke: #2f81d6', block)[1]), float
  )
  x, y = (points - points[0]).T
  np.testing.assert_allclose(x / x[-1], np.log([1, 2, 3]) / np.log(3), atol=1e-4)
  np.testing.assert_allclose(y / y[-1], np.log(np.array([97, 2, 1]) / 97) / np.log(1 / 97), atol=1e-4)
  assert not Page(codebook.use(counts, 1.0)).of('img')
