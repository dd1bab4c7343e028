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
def test_sampled_scenes_follow_the_rules(seed, two_objects, held_out):
  scene = sample(seed, two_objects, held_out)
  assert len(scene.objects) == 1 + two_objects
  assert scenes.is_held_out(scene) == held_out
  assert scenes.Scene.from_json(scene.to_json()) == scene
  for shape in scene.objects:
    assert 32 * (min(shape.x, shape.y, 1 - shape.x, 1 - shape.y) - shape.radius) > 0.9  # pixels from the edge
  if two_objects:
    first, second = scene.objects
    distance = max(abs(first.x - second.x), abs(first.y - second.y))
    assert 32 * (distance - first.radius - second.radius) >= 2
    assert first.color != second.color
    assert scenes.relation_of(first, second) == scene.relation
    assert scene.position is None
  else:
    assert scene.position is not None


def test_sampling_depends_only_on_the_seed():
  assert sample(7, True, False) == sample(7, True, False)
  assert sample(7, True, False) != sample(8, True, False)


def mirror(scene):
  """Describes the same image with the objects in the other order."""
  return scenes.Scene(scene.background, scene.objects[::-1], scenes.INVERSE[scene.relation])


@settings(deadline=None)
@given(SEEDS, st.booleans())
def test_held_out_does_not_depend_on_the_order_of_the_objects(seed, held_out):
  assert scenes.is_held_out(mirror(sample(seed, True, held_out))) == held_out


def test_held_out_is_right_for_known_scenes():
  def pair(first, relation, second):
    centers = {'above': ((0.5, 0.25), (0.5, 0.75)), 'left of': ((0.25, 0.5), (0.75, 0.5))}[relation]
    shapes = [scenes.Shape(s, c, 'small', *center) for (s, c), center in zip((first, second), centers, strict=True)]
    return scenes.Scene('white', tuple(shapes), relation)

  assert scenes.is_held_out(scenes.Scene('white', (scenes.Shape('circle', 'purple', 'small', 0.5, 0.5),)))
  assert not scenes.is_held_out(scenes.Scene('white', (scenes.Shape('circle', 'red', 'small', 0.5, 0.5),)))
  assert not scenes.is_held_out(pair(('circle', 'red'), 'above', ('square', 'blue')))
  assert scenes.is_held_out(pair(('square', 'blue'), 'above', ('circle', 'red')))
  assert not scenes.is_held_out(pair(('square', 'blue'), 'left of', ('circle', 'red')))
  assert scenes.is_held_out(pair(('circle', 'green'), 'above', ('square', 'blue')))
  assert not scenes.is_held_out(pair(('circle', 'blue'), 'above', ('square', 'green')))


def test_every_single_attribute_occurs_in_training():
  rng = np.random.default_rng(0)
  single_scenes = [scenes.sample_scene(rng, False, False) for _ in range(1000)]
  pair_scenes = [scenes.sample_scene(rng, True, False) for _ in range(1000)]
  for group in (single_scenes, pair_scenes):
    shapes = [shape for scene in group for shape in scene.objects]
    assert {shape.shape for shape in shapes} == set(scenes.SHAPES)
    assert {shape.color for shape in shapes} == set(scenes.COLORS)
    assert {shape.size for shape in shapes} == set(scenes.SIZES)
    assert {scene.background for scene in group} == set(scenes.BACKGROUNDS)
  assert {scene.position for scene in single_scenes} == set(scenes.POSITIONS)
  assert {scene.relation for scene in pair_scenes} == set(scenes.RELATIONS)


def test_one_in_eight_kinds_is_held_out_and_held_out_relations_are_canonical():
  assert len(scenes.HELD_OUT_KINDS) / (len(scenes.SHAPES) * len(scenes.COLORS)) == 1 / 8
  names = {'above', 'left of', *scenes.SHAPES, *scenes.COLORS}
  assert all(name in names for entry in scenes.HELD_OUT_RELATIONS for name in entry)


def test_colors_are_easy_to_tell_apart():
  palette = np.array([*scenes.COLORS.values(), *scenes.BACKGROUNDS.values()], float)
  distances = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
  assert distances[~np.eye(len(palette), dtype=bool)].min() > 85


@pytest.mark.parametrize(
  ('x', 'y', 'name'),
  [(0.5, 0.5, 'center'), (0.26, 0.5, 'left'), (0.3, 0.7, 'bottom left'), (0.5, 0.2, 'top'), (0.38, 0.5, None)],
)
def test_positions_are_named_within_their_tolerance(x, y, name):
  assert scenes.position_of(x, y) == name


def test_relations_are_named_unless_objects_are_diagonal_or_too_close():
  def shape(x, y):
    return scenes.Shape('circle', 'red', 'small', x, y)

  assert scenes.relation_of(shape(0.2, 0.5), shape(0.8, 0.4)) == 'left of'
  assert scenes.relation_of(shape(0.5, 0.8), shape(0.5, 0.2)) == 'below'
  assert scenes.relation_of(shape(0.2, 0.2), shape(0.8, 0.8)) is None  # diagonal
  assert scenes.relation_of(shape(0.5, 0.5), shape(0.5, 0.6)) is None  # too close


def test_invalid_shapes_scenes_and_json_are_refused():
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
