import numpy as np
import pytest

from dalle_jax.sampling import completion


def _cells(text):
  return np.array([[c == '#' for c in line] for line in text.split()])


def test_top_and_box_keep_only_cells_that_lie_entirely_inside():
  np.testing.assert_array_equal(completion.top(4, 0.5), _cells('#### #### .... ....'))
  np.testing.assert_array_equal(completion.top(4, 0.74), _cells('#### #### .... ....'))
  np.testing.assert_array_equal(completion.box(4, (0.25, 0, 1, 0.6)), _cells('.### .### .... ....'))
  np.testing.assert_array_equal(completion.touched(4, (0.25, 0, 0.6, 0.1), '--a'), _cells('.##. .... .... ....'))
  assert completion.box(3, (0, 0, 1, 1)).all() and not completion.box(3, (0.4, 0.4, 0.5, 0.5)).any()
  assert completion.top(3, 1 / 3).sum() == 3  # 1/3 is not exact in floating point


def test_a_cell_stays_only_if_all_its_pixels_stay():
  keep = np.ones((6, 6), bool)
  keep[2, 5] = False
  np.testing.assert_array_equal(completion.from_pixels(keep, 3), _cells('### ##. ###'))


@pytest.mark.parametrize(
  ('text', 'holes'), [('## ..', False), ('#. ..', False), ('.. ..', False), ('.# ..', True), ('#. .#', True)]
)
def test_there_are_holes_if_a_kept_code_follows_a_sampled_code(text, holes):
  assert completion.has_holes(_cells(text)) == holes


def test_a_variation_of_strength_one_half_multiplies_the_odds_by_four():
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
def test_values_out_of_range_are_refused_with_the_name_of_the_flag(call, message):
  with pytest.raises(ValueError, match=message):
    call()
