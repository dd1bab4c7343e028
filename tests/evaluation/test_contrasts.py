"""Tests of near misses, with the judge, which reads scenes from pixels."""

import numpy as np
import pytest

from dalle_jax.data.shapes import builder
from dalle_jax.data.shapes import captions as language
from dalle_jax.data.shapes.scene import Scene, Shape, relation_of
from dalle_jax.evaluation import contrasts, judge
from dalle_jax.evaluation.figures import wilson

SETTINGS = {'image_size': 32, 'num_train': 1, 'num_validation': 1, 'num_held_out': 1, 'two_object_fraction': 0.5,
            'seed': 3}  # fmt: skip


@pytest.fixture(scope='module', params=[0, 1], ids=lambda jitter: f'jitter {jitter}')
def records(request):
  config = builder.ShapesConfig(name='test', jitter=request.param, **SETTINGS)
  return [builder.make_example(config, split, i) for split in ('validation', 'held_out') for i in range(60)]


def test_captions_are_true_of_their_images_and_false_of_the_near_misses(records):
  pairs = contrasts.make_pairs(records, 32, 20, seed=0)
  assert len(set(pairs.captions)) == len(pairs.captions) == len(pairs.true)
  assert judge.judge(pairs.captions, pairs.true).all()
  assert not judge.judge([pairs.captions[i] for i in pairs.of], pairs.false).any()
  assert set(pairs.contrasts) == set(contrasts.CONTRASTS)


def test_a_near_miss_changes_only_the_attribute_of_its_contrast(records):
  same = {
    'color': ('shape', 'size', 'x', 'y'), 'shape': ('color', 'size', 'x', 'y'), 'size': ('color', 'shape', 'x', 'y'),
    'background': ('color', 'shape', 'size', 'x', 'y'), 'position': ('color', 'shape', 'size'),
    'relation': ('color', 'shape', 'size'), 'exchanged_colors': ('shape', 'size', 'x', 'y'),
  }  # fmt: skip
  for record in records:
    scene = Scene.from_json(record['scene'])
    for name, changed in contrasts.near_misses(language.parse(record['caption']), scene, np.random.default_rng(0)):
      assert changed != scene
      assert (changed.background == scene.background) == (name != 'background')
      for before, after in zip(scene.objects, changed.objects, strict=True):
        assert [getattr(before, a) for a in same[name]] == [getattr(after, a) for a in same[name]], name
      assert len(scene.objects) == 1 or changed.relation == relation_of(*changed.objects)


def test_contrasts_that_do_not_make_the_caption_false_are_left_out():
  scene = Scene('white', (Shape('circle', 'red', 'small', 0.5, 0.25), Shape('circle', 'blue', 'small', 0.5, 0.75)),
                'above')  # fmt: skip
  names_by_caption = {
    text: {name for name, _ in contrasts.near_misses(language.parse(text), scene, np.random.default_rng(0))}
    for text in ('a red circle and a blue circle', 'a small red circle above a small blue circle')
  }
  assert list(names_by_caption.values()) == [
    {'color', 'shape'}, {'color', 'shape', 'size', 'relation', 'exchanged_colors'},
  ]  # fmt: skip


def test_scores_are_shares_of_near_misses_and_of_captions_that_rank_right():
  captions = ['a red circle', 'a blue square', 'a red circle above a blue square']
  unused = np.zeros((0, 32, 32, 3), np.uint8)
  of, names = np.array([0, 0, 1, 2]), ['color', 'shape', 'color', 'relation']
  pairs = contrasts.Pairs(captions, unused, unused, of, names)
  texts, true = np.eye(3), np.eye(3) * 0.5
  false = np.eye(3)[of] * np.array(
    [[0.4], [0.6], [0.1], [0.5]]
  )  # the second near miss scores higher and the last one ties
  figures = contrasts.scores(pairs, texts, true, false, 'validation')
  ends = [figures[f'contrast_{end}/validation/one_object/color'] for end in ('low', 'high')]
  assert ends == pytest.approx(wilson(1, 2))
  assert {name: value for name, value in figures.items() if name.startswith('contrast/')} == pytest.approx({
    'contrast/validation/one_object/color': 1.0,
    'contrast/validation/one_object/shape': 0.0,
    'contrast/validation/one_object/all': 0.5,
    'contrast/validation/one_object/num_captions': 2.0,
    'contrast/validation/two_objects/relation': 0.0,
    'contrast/validation/two_objects/all': 0.0,
    'contrast/validation/two_objects/num_captions': 1.0,
  })  # fmt: skip
