import numpy as np
import pytest
from web_page import NASTY, Page

from dalle_jax.reporting import gallery

RNG = np.random.default_rng(0)


def _images(*shape):
  return RNG.integers(0, 256, (*shape, 4, 6, 3), np.uint8)


def _shown(page, images):
  """The indices in `images` of the pictures on a page, identified by their pixels."""
  flat = images.reshape(-1, *images.shape[-3:])
  return [next(i for i, image in enumerate(flat) if np.array_equal(image, tile.pixels())) for tile in page.of('img')]


def test_reconstructions_are_beside_originals_from_the_worst_to_the_best():
  before, after = _images(10), _images(10)
  psnr = np.array([30, 21, 28, 25, 24, 27, 22, 29, 26, 23.0])
  page = Page(gallery.reconstructions(before, after, psnr, count=4))
  assert page.text('figcaption') == ['21.0 dB', '24.0 dB', '27.0 dB', '30.0 dB']
  assert _shown(page, np.concatenate([before, after])) == [1, 11, 4, 14, 5, 15, 0, 10]
  assert [image.attrs['alt'] for image in page.of('img')][:2] == ['original 2', 'reconstruction of 2']
  assert '4 of 10' in page.text('p')[0] and 'mean of all is 25.5 dB' in page.text('p')[0]
  assert len(Page(gallery.reconstructions(before[:2], after[:2], psnr[:2])).of('figure')) == 2


def test_samples_are_sorted_by_score():
  images, scores = _images(2, 3), np.array([[0.1, 0.3, 0.2], [np.nan, -1.5, -1.0]])
  page = Page(gallery.samples([NASTY, 'b'], images, scores, NASTY))
  assert page.text('h3') == [NASTY, 'b'] and page.text('p') == [NASTY]
  assert _shown(page, images) == [1, 2, 0, 5, 4, 3]
  assert page.text('figcaption') == ['0.300', '0.200', '0.100', '−1.000', '−1.500', '–']
  assert [image.attrs['alt'] for image in page.of('img')][:3] == ['image 2', 'image 3', 'image 1']


def test_correct_samples_come_first_and_have_a_mark_besides_the_colour():
  images, scores = _images(1, 4), np.array([[4.0, 3.0, 2.0, 1.0]])
  page = Page(gallery.samples([''], images, scores, 'note', np.array([[False, True, False, True]])))
  assert _shown(page, images) == [1, 3, 0, 2] and not page.of('h3')
  assert page.text('figcaption') == ['✓ 3.000', '✓ 1.000', '✗ 4.000', '✗ 2.000']
  assert [image.styles[-1] for image in page.of('img')] == ['right', 'right', 'wrong', 'wrong']
  assert '(2 of 4)' in page.text('p')[1]


@pytest.mark.parametrize(
  ('score', 'text'), [(-0.06013, '−0.060'), (10.26, '10.3'), (-4321.7, '−4,322'), (float('-inf'), '–')]
)
def test_scores_have_few_decimals(score, text):
  assert gallery.score_text(score) == text


def test_kept_candidates_are_large_and_rejected_candidates_collapsed(tmp_path):
  images, scores = _images(2, 5), np.array([[1.0, 5, 3, 4, 2], [5, 4, 3, 2, 1.0]])
  path = tmp_path / 'deep' / 'candidates.html'
  gallery.write_candidates_page(
    path, ['a', NASTY], images, scores, np.array([[1, 3], [2, 0]]), score_name='likeness',
    settings={'seed': 3, 'model': NASTY}, notes=[NASTY],
  )  # fmt: skip
  page = Page(path.read_text(encoding='utf-8'))
  # Kept candidates are in the order of `kept`, rejected candidates in the order of their scores.
  assert _shown(page, images) == [1, 3, 2, 4, 0, 7, 5, 6, 8, 9]
  assert page.text('figcaption')[:5] == ['1. 5.000', '2. 4.000', '3.000', '2.000', '1.000']
  assert page.text('summary')[:2] == ['3 not kept'] * 2 and len(page.of('div', 'large')) == 2
  assert page.text('p')[0] == 'For each prompt, 2 of 5 candidates were kept by likeness (higher is better).'
  assert page.text('h3') == ['a', NASTY] and NASTY in page.text('p') and NASTY in page.text('td')
  assert all(address.startswith('data:image/png;base64,') for address in page.addresses())
  assert not page.of('script')


def test_all_candidates_may_be_kept():
  page = Page(gallery.candidates(['a'], _images(1, 2), np.zeros((1, 2)), np.array([[1, 0]])))
  assert not page.of('details') and len(page.of('img')) == 2


def test_large_and_many_pictures_are_reduced_to_means_of_squares(monkeypatch):
  images = RNG.integers(0, 256, (2, 3, 130, 130, 3), np.uint8)
  kept, scores = np.array([[0], [1]]), np.arange(6.0).reshape(2, 3)
  page = Page(gallery.candidates(['a', 'b'], images, scores, kept))
  sizes = [image.pixels().shape[0] for image in page.of('img')]
  assert sizes == [130, 65, 65] * 2
  thumbnail = page.of('img')[1].pixels()  # the third image of the first prompt
  np.testing.assert_allclose(thumbnail, images[0, 2].reshape(65, 2, 65, 2, 3).mean(axis=(1, 3)), atol=1)
  assert 'pixelated' not in page.of('img')[0].styles and 'pixelated' in page.of('img')[1].styles
  monkeypatch.setattr(gallery, 'MOST_PIXELS', 10_000)
  monkeypatch.setattr(gallery, 'MOST_REJECTED', 2)
  page = Page(gallery.candidates(['a', 'b'], images, scores, kept))
  assert [image.pixels().shape[0] for image in page.of('img')] == [65, 65] * 2
  assert page.text('summary') == ['2 not kept; the best 1 are shown'] * 2


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'prompts': ['a']}, '1 prompts, images uint8'),
    ({'scores': np.zeros((2, 2))}, r'scores \(2, 2\) do not fit'),
    ({'images': np.zeros((2, 3, 4, 6, 3))}, 'images float64'),
    ({'kept': np.array([[0], [3]])}, 'images from 0 to 2 for 2 prompts'),
    ({'kept': np.array([[0]])}, r'kept of shape \(1, 1\)'),
    ({'kept': np.array([[0, 1], [2, 2]])}, 'an image of a prompt twice'),
  ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
  values = {'prompts': ['a', 'b'], 'images': _images(2, 3), 'scores': np.zeros((2, 3)), 'kept': np.array([[0], [1]])}
  with pytest.raises(ValueError, match=message):
    gallery.candidates(**{**values, **changes})
  with pytest.raises(ValueError, match=r'right has shape \(1,\); it must be \(2, 3\)'):
    gallery.samples(['a', 'b'], _images(2, 3), np.zeros((2, 3)), '', np.array([True]))
