import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.data.shapes import captions
from dalle_jax.data.shapes import scene as scenes
from dalle_jax.data.shapes.captions import Claims, ObjectClaim, caption, parse

SEEDS = st.integers(0, 2**32 - 1)


def sample(seed, two_objects, held_out=False):
  rng = np.random.default_rng(seed)
  return scenes.sample_scene(rng, two_objects, held_out), rng


@settings(deadline=None, max_examples=300)
@given(SEEDS, st.booleans(), st.booleans())
def test_captions_are_short_true_and_can_be_parsed(seed, two_objects, held_out):
  scene, rng = sample(seed, two_objects, held_out)
  text = caption(scene, rng)
  claims = parse(text)
  assert claims.hold(scene)
  assert text == text.lower().strip() and '  ' not in text
  assert len(text.split()) <= captions.MAX_WORDS
  assert set(text.split()) <= captions.VOCABULARY
  # The claims are exactly what the caption mentions.
  words = text.split()
  assert (claims.background is not None) == ('background' in words)
  assert (claims.position is not None) == any(place in text for place in captions._POSITION_OF)
  sizes = [word for word in words if word in captions._SIZE_OF]
  assert [captions._SIZE_OF[word] for word in sizes] == [o.size for o in claims.objects if o.size]
  if two_objects:
    assert (claims.relation is None) == (' and ' in text)
  if scenes.relation_is_held_out(scene):
    assert claims.relation is not None


@settings(deadline=None)
@given(SEEDS, st.booleans(), st.sampled_from(['shape', 'color', 'background']))
def test_claims_are_false_for_a_changed_scene(seed, two_objects, attribute):
  scene, rng = sample(seed, two_objects)
  claims = parse(caption(scene, rng))
  if attribute == 'background':
    claims = Claims(claims.objects, claims.position, scene.background, claims.relation)
    changed = next(name for name in scenes.BACKGROUNDS if name != scene.background)
    scene = scenes.Scene(changed, scene.objects, scene.relation)
  else:
    names = {'shape': scenes.SHAPES, 'color': scenes.COLORS}[attribute]
    used = {getattr(shape, attribute) for shape in scene.objects}
    values = vars(scene.objects[0]) | {attribute: next(name for name in names if name not in used)}
    scene = scenes.Scene(scene.background, (scenes.Shape(**values), *scene.objects[1:]), scene.relation)
  assert not claims.hold(scene)


@pytest.mark.parametrize(
  ('text', 'claims'),
  [
    (
      'a large red circle above a small blue square',
      Claims((ObjectClaim('circle', 'red', 'large'), ObjectClaim('square', 'blue', 'small')), relation='above'),
    ),
    ('A  green diamond.', Claims((ObjectClaim('diamond', 'green'),))),
    (
      'there is an orange diamond on the left of a white background',
      Claims((ObjectClaim('diamond', 'orange'),), 'left', 'white'),
    ),
    (
      'a picture of a black background with a little pink circle in the top left corner',
      Claims((ObjectClaim('circle', 'pink', 'small'),), 'top left', 'black'),
    ),
    (
      'a big cyan square under a red triangle on a gray background',
      Claims((ObjectClaim('square', 'cyan', 'large'), ObjectClaim('triangle', 'red')), None, 'gray', 'below'),
    ),
    (
      'a red circle and a blue circle',
      Claims((ObjectClaim('circle', 'red'), ObjectClaim('circle', 'blue'))),
    ),
  ],
)
def test_parse_returns_the_claims(text, claims):
  assert parse(text) == claims


def test_only_true_claims_hold_in_either_order_of_the_objects():
  upper, lower = scenes.Shape('circle', 'red', 'large', 0.5, 0.25), scenes.Shape('square', 'blue', 'small', 0.5, 0.75)
  for scene in (scenes.Scene('white', (upper, lower), 'above'), scenes.Scene('white', (lower, upper), 'below')):
    assert parse('a red circle above a blue square').hold(scene)
    assert parse('a blue square below a red circle').hold(scene)
    assert parse('a small blue square and a red circle').hold(scene)
    assert not parse('a red circle below a blue square').hold(scene)
    assert not parse('a blue square above a red circle').hold(scene)
    assert not parse('a red circle left of a blue square').hold(scene)
    assert not parse('a blue circle above a red square').hold(scene)
    assert not parse('a small red circle above a blue square').hold(scene)
    assert not parse('a red circle').hold(scene)
    assert not parse('a red circle above a blue square on a gray background').hold(scene)


def test_relation_claims_are_false_for_diagonal_objects():
  shapes = (scenes.Shape('circle', 'red', 'small', 0.2, 0.2), scenes.Shape('square', 'blue', 'small', 0.8, 0.8))
  scene = scenes.Scene('white', shapes)
  assert parse('a red circle and a blue square').hold(scene)
  assert not parse('a red circle above a blue square').hold(scene)
  assert parse(caption(scene, np.random.default_rng(0))).hold(scene)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('a dog on a skateboard', r"unknown words \['dog', 'skateboard'\]"),
    ('a red', 'its words are known'),
    ('a red circle on the left on the right', 'its words are known'),
    ('', "Write it like 'a large red circle above a small blue square'"),
  ],
)
def test_text_outside_the_grammar_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    parse(text)


def test_the_plainest_wording_is_common():
  rng = np.random.default_rng(0)
  is_plain = collections.Counter()
  for _ in range(1000):
    scene = scenes.sample_scene(rng, True, False)
    first, second = scene.objects
    nouns = [f'a {o.size} {o.color} {o.shape}' for o in (first, second)]
    is_plain[caption(scene, rng) == f'{nouns[0]} {captions._RELATION_WORDS[scene.relation][0]} {nouns[1]}'] += 1
  assert is_plain[True] > 40


def test_the_vocabulary_is_small():
  assert len(captions.VOCABULARY) < 50
