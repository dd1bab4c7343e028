import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.data.shapes import partition
from dalle_jax.data.shapes import scene as scenes
from dalle_jax.data.shapes.captions import Claims, parse

PARAPHRASES = (
  ('a small red circle above a blue square', 'An image of a blue square under a  little red circle.'),
  ('a red circle and a blue square', 'there is a blue square and a red circle'),
  ('a big pink square in the middle of a gray background', 'a gray background with a large pink square in the center'),
  ('a green diamond to the left of a red circle', 'a red circle right of a green diamond'),
)


def single_scenes():
  """Every scene of one object without jitter that is not held out."""
  for shape, color, size, center, background in itertools.product(
    scenes.SHAPES, scenes.COLORS, scenes.SIZES, scenes.POSITIONS.values(), scenes.BACKGROUNDS
  ):
    scene = scenes.Scene(background, (scenes.Shape(shape, color, size, *center),))
    if not scenes.is_held_out(scene):
      yield scene


@pytest.mark.parametrize(('first', 'second'), PARAPHRASES)
def test_paraphrases_are_one_description(first, second):
  assert partition.canonical(parse(first)) == partition.canonical(parse(second))


def test_different_descriptions_have_different_texts():
  texts = (
    'a red circle', 'a small red circle', 'a large red circle', 'a red circle on the left', 'a red square',
    'a red circle on a white background', 'a red circle on the left of a white background',
    'a red circle above a blue square', 'a blue square above a red circle', 'a red circle and a blue square',
    'a small red circle above a blue square', 'a red circle above a small blue square',
    'a red circle on a black background', 'a red circle left of a blue square', 'a blue circle above a red square',
  )  # fmt: skip
  assert len({partition.canonical(parse(text)) for text in texts}) == len(texts)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_description_of_a_scene_has_neither_jitter_nor_an_order(seed, two_objects):
  rng = np.random.default_rng(seed)
  scene = scenes.sample_scene(rng, two_objects, held_out=False)
  description = partition.describe(scene)
  assert description.hold(scene)
  moved = tuple(dataclasses.replace(shape, x=shape.x + 0.005) for shape in scene.objects)
  assert partition.describe(scenes.Scene(scene.background, moved, scene.relation)) == description
  if two_objects:
    mirrored = scenes.Scene(scene.background, scene.objects[::-1], scenes.INVERSE[scene.relation])
    assert partition.canonical(partition.describe(mirrored)) == partition.canonical(description)
    assert partition.is_reserved(partition.describe(mirrored)) == partition.is_reserved(description)


def test_both_parts_show_every_attribute_of_a_single_object():
  parts: dict[bool, list] = {False: [], True: []}
  for scene in single_scenes():
    parts[partition.is_reserved(partition.describe(scene))].append(scene)
  total = len(parts[False]) + len(parts[True])
  assert total == 28 * 2 * 9 * 3
  assert len(parts[True]) / total == pytest.approx(partition.RESERVED_SHARE, abs=0.03)
  for part in parts.values():
    kinds = {(scene.objects[0].shape, scene.objects[0].color, scene.objects[0].size) for scene in part}
    assert len(kinds) == 28 * 2
    assert {scene.position for scene in part} == set(scenes.POSITIONS)
    assert {scene.background for scene in part} == set(scenes.BACKGROUNDS)
  # Training also shows every kind at every position, and on every background.
  kinds = [(scene.objects[0].shape, scene.objects[0].color) for scene in parts[False]]
  assert len(set(zip(kinds, (scene.position for scene in parts[False]), strict=True))) == 28 * 9
  assert len(set(zip(kinds, (scene.background for scene in parts[False]), strict=True))) == 28 * 3


def test_every_reserved_scene_can_have_a_reserved_caption_and_others_one_of_the_rest():
  missing = {False: 0, True: 0}
  for scene in single_scenes():
    full = partition.describe(scene)
    reserved = partition.is_reserved(full)
    choices = itertools.product(full.objects, (None, full.position), (None, full.background))
    claims = [Claims((noun,), *rest) for noun, *rest in choices]
    missing[reserved] += not any(partition.is_reserved(claim) == reserved for claim in claims)
  assert missing == {False: 0, True: 0}  # the full description has the scene's own place
