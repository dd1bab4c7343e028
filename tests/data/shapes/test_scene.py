import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.data.shapes import scene as scenes


def sample(seed, two_objects, held_out):
  return scenes.sample_scene(np.random.default_rng(seed), two_objects, held_out)


SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(SEEDS, st.booleans(), st.booleans())
def test_sampled_scenes_keep_the_rules(seed, two_objects, held_out):
  scene = sample(seed, two_objects, held_out)
  assert len(scene.objects) == 1 + two_objects
  assert scenes.is_held_out(scene) == held_out
  assert scenes.Scene.from_json(scene.to_json()) == scene
  for shape in scene.objects:
    assert 32 * (min(shape.x, shape.y, 1 - shape.x, 1 - shape.y) - shape.radius) > 0.9  # pixels to the edge
  if two_objects:
    first, second = scene.objects
    distance = max(abs(first.x - second.x), abs(first.y - second.y))
    assert 32 * (distance - first.radius - second.radius) >= 2
    assert first.color != second.color
    assert scenes.relation_of(first, second) == scene.relation
    assert scene.position is None
  else:
    assert scene.position is not None


def test_sampling_is_a_function_of_the_seed():
  assert sample(7, True, False) == sample(7, True, False)
  assert sample(7, True, False) != sample(8, True, False)


def mirror(scene):
  """The same picture, told with the other object first."""
  return scenes.Scene(scene.background, scene.objects[::-1], scenes.INVERSE[scene.relation])


@settings(deadline=None)
@given(SEEDS, st.booleans())
def test_held_out_is_a_property_of_the_picture(seed, held_out):
  assert scenes.is_held_out(mirror(sample(seed, True, held_out))) == held_out


def test_held_out_rule_on_known_scenes():
  def pair(first, relation, second):
    places = {'above': ((0.5, 0.25), (0.5, 0.75)), 'left of': ((0.25, 0.5), (0.75, 0.5))}[relation]
    shapes = [scenes.Shape(s, c, 'small', *place) for (s, c), place in zip((first, second), places, strict=True)]
    return scenes.Scene('white', tuple(shapes), relation)

  assert scenes.is_held_out(scenes.Scene('white', (scenes.Shape('circle', 'purple', 'small', 0.5, 0.5),)))
  assert not scenes.is_held_out(scenes.Scene('white', (scenes.Shape('circle', 'red', 'small', 0.5, 0.5),)))
  assert not scenes.is_held_out(pair(('circle', 'red'), 'above', ('square', 'blue')))
  assert scenes.is_held_out(pair(('square', 'blue'), 'above', ('circle', 'red')))
  assert not scenes.is_held_out(pair(('square', 'blue'), 'left of', ('circle', 'red')))
  assert scenes.is_held_out(pair(('circle', 'green'), 'above', ('square', 'blue')))
  assert not scenes.is_held_out(pair(('circle', 'blue'), 'above', ('square', 'green')))


def test_every_attribute_occurs_without_the_held_out_combinations():
  rng = np.random.default_rng(0)
  ones = [scenes.sample_scene(rng, False, False) for _ in range(1000)]
  twos = [scenes.sample_scene(rng, True, False) for _ in range(1000)]
  for group in (ones, twos):
    shapes = [shape for scene in group for shape in scene.objects]
    assert {shape.shape for shape in shapes} == set(scenes.SHAPES)
    assert {shape.color for shape in shapes} == set(scenes.COLORS)
    assert {shape.size for shape in shapes} == set(scenes.SIZES)
    assert {scene.background for scene in group} == set(scenes.BACKGROUNDS)
  assert {scene.position for scene in ones} == set(scenes.POSITIONS)
  assert {scene.relation for scene in twos} == set(scenes.RELATIONS)


def test_share_of_held_out_combinations():
  assert len(scenes.HELD_OUT_KINDS) / (len(scenes.SHAPES) * len(scenes.COLORS)) == 1 / 8
  names = {'above', 'left of', *scenes.SHAPES, *scenes.COLORS}
  assert all(name in names for entry in scenes.HELD_OUT_RELATIONS for name in entry)


def test_colors_are_far_apart():
  palette = np.array([*scenes.COLORS.values(), *scenes.BACKGROUNDS.values()], float)
  distances = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
  assert distances[~np.eye(len(palette), dtype=bool)].min() > 85


@pytest.mark.parametrize(
  ('x', 'y', 'name'),
  [(0.5, 0.5, 'center'), (0.26, 0.5, 'left'), (0.3, 0.7, 'bottom left'), (0.5, 0.2, 'top'), (0.38, 0.5, None)],
)
def test_position_of(x, y, name):
  assert scenes.position_of(x, y) == name


def test_relation_of():
  def shape(x, y):
    return scenes.Shape('circle', 'red', 'small', x, y)

  assert scenes.relation_of(shape(0.2, 0.5), shape(0.8, 0.4)) == 'left of'
  assert scenes.relation_of(shape(0.5, 0.8), shape(0.5, 0.2)) == 'below'
  assert scenes.relation_of(shape(0.2, 0.2), shape(0.8, 0.8)) is None  # diagonal
  assert scenes.relation_of(shape(0.5, 0.5), shape(0.5, 0.6)) is None  # too near


def test_wrong_values_are_refused():
  with pytest.raises(ValueError, match=r"Shape 'star' is unknown; allowed are circle"):
    scenes.Shape('star', 'red', 'small', 0.5, 0.5)
  with pytest.raises(ValueError, match=r'must lie in \[0, 1\]'):
    scenes.Shape('circle', 'red', 'small', 1.5, 0.5)
  circle = scenes.Shape('circle', 'red', 'small', 0.5, 0.5)
  with pytest.raises(ValueError, match='given 3 with relation'):
    scenes.Scene('white', (circle,) * 3)
  with pytest.raises(ValueError, match="given 1 with relation 'above'"):
    scenes.Scene('white', (circle,), 'above')
  for text in ('{}', '[]', json.dumps({'background': 'white', 'objects': [{'shape': 'circle'}], 'relation': None})):
    with pytest.raises(ValueError, match='not the JSON of a scene'):
      scenes.Scene.from_json(text)
  with pytest.raises(ValueError, match='Expecting value'):
    scenes.Scene.from_json('red')
