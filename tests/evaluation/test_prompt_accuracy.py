import numpy as np
import pytest

from dalle_jax.evaluation import judge
from dalle_jax.evaluation.figures import wilson
from dalle_jax.evaluation.prompt_accuracy import choose, num_objects, scores

ONE = ['a red circle', 'a large blue square', 'a green circle']
TWO = ['a red circle above a blue square', 'a small green square and a red circle']


def test_the_objects_of_a_caption_are_counted():
  assert [num_objects(caption) for caption in ONE + TWO] == [1, 1, 1, 2, 2]


def test_a_caption_outside_the_language_is_refused():
  with pytest.raises(ValueError):
    num_objects('three cats')


def test_choose_takes_the_first_distinct_captions_of_each_kind():
  captions = [TWO[0], ONE[0], ONE[0], TWO[0], ONE[1], ONE[2], TWO[1]]
  assert choose(captions, 2) == [ONE[0], ONE[1], TWO[0], TWO[1]]
  assert choose(captions, 1) == [ONE[0], TWO[0]]
  assert choose(captions, 99) == ONE + TWO
  assert choose(ONE, 2) == ONE[:2]


def test_scores_match_hand_computed_values():
  right = np.array([True, False, True, True, False])
  result = scores(ONE + TWO, right, 'validation')
  assert result == pytest.approx(
    {
      'prompt_accuracy/validation': 3 / 5,
      'prompt_accuracy/validation/one_object': 2 / 3,
      'prompt_accuracy/validation/two_objects': 1 / 2,
      **_ends('validation', 3 / 5, 5),
      **_ends('validation/one_object', 2 / 3, 3),
      **_ends('validation/two_objects', 1 / 2, 2),
      'prompt_judge': judge.VERSION,
      'prompt_count/validation': 5,
      'prompt_count/validation/one_object': 3,
      'prompt_count/validation/two_objects': 2,
    }
  )


def _ends(name, value, count):
  return dict(zip((f'prompt_accuracy_low/{name}', f'prompt_accuracy_high/{name}'), wilson(value, count), strict=True))


def test_images_with_the_same_caption_are_one_observation_if_all_are_right():
  result = scores([*ONE, *ONE, ONE[0]], np.ones(7, bool), 'validation')
  assert result['prompt_count/validation'] == 7
  assert result['prompt_accuracy_low/validation'] == pytest.approx(wilson(1, 49 / (9 + 4 + 4))[0])


def test_a_kind_without_captions_has_no_score():
  result = scores(ONE, np.ones(3, bool), 'held_out')
  assert result['prompt_accuracy/held_out/one_object'] == 1
  assert not any('two_objects' in name for name in result)
