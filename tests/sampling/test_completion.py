import numpy as np
import pytest

from dalle_jax.sampling import completion


def _cells(text):
  return np.array([[c == '#' for c in line] for line in text.split()])


def test_the_top_and_boxes_keep_whole_cells():
  np.testing.assert_array_equal(completion.top(4, 0.5), _cells('#### #### .... ....'))
  np.testing.assert_array_equal(completion.top(4, 0.74), _cells('#### #### .... ....'))
  np.testing.assert_array_equal(completion.box(4, (0.25, 0, 1, 0.6)), _cells('.### .### .... ....'))
  np.testing.assert_array_equal(completion.touched(4, (0.25, 0, 0.6, 0.1), '--a'), _cells('.##. .... .... ....'))
  assert completion.box(3, (0, 0, 1, 1)).all() and not completion.box(3, (0.4, 0.4, 0.5, 0.5)).any()
  assert completion.top(3, 1 / 3).sum() == 3  # shares that are not exact


def test_a_cell_stays_if_all_its_pixels_do():
  keep = np.ones((6, 6), bool)
  keep[2, 5] = False
  np.testing.assert_array_equal(completion.from_pixels(keep, 3), _cells('### ##. ###'))


@pytest.mark.parametrize(
  ('text', 'holes'), [('## ..', False), ('#. ..', False), ('.. ..', False), ('.# ..', True), ('#. .#', True)]
)
def test_holes_are_what_is_followed_by_something_that_stays(text, holes):
  assert completion.has_holes(_cells(text)) == holes


def test_a_variation_multiplies_the_odds():
  assert completion.variation_bonus(1.0) == 0
  assert np.exp(completion.variation_bonus(0.5)) == pytest.approx(4)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: completion.top(4, 1.5), r'--keep_top is 1\.5'),
    (lambda: completion.box(4, (0.5, 0, 0.2, 1)), r'--keep_box is 0\.5,0,0\.2,1; .* LEFT <= RIGHT'),
    (lambda: completion.touched(4, (0, 0, 2, 1), '--redraw_box'), r'--redraw_box is 0,0,2,1'),
    (lambda: completion.variation_bonus(0.0), r'--variation is 0;'),
    (lambda: completion.variation_bonus(1.1), r'--variation is 1\.1'),
  ],
)
def test_what_cannot_be_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
