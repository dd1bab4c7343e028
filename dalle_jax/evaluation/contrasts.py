"""Near misses of captioned shapes: pictures that differ from a caption's own in one thing that the caption names.

A reranker that counts the words it finds cannot tell them apart: with two objects, the same colours and shapes are
there when colours are exchanged or the relation is another.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dalle_jax.data.shapes import captions as language
from dalle_jax.data.shapes.captions import Claims
from dalle_jax.data.shapes.render import render
from dalle_jax.data.shapes.scene import BACKGROUNDS, COLORS, POSITIONS, RELATIONS, SHAPES, SIZES, Scene
from dalle_jax.evaluation.prompt_accuracy import KINDS


def _other(rng: np.random.Generator, names: Sequence[str], *taken: str) -> str:
  left = [name for name in names if name not in taken]
  return left[rng.integers(len(left))]


def _with_one(scene: Scene, rng: np.random.Generator, name: str, choices: Sequence[str], taken: list[str]) -> Scene:
  """The scene with another value of an attribute of one of its objects."""
  changed = int(rng.integers(len(scene.objects)))
  objects = list(scene.objects)
  value = _other(rng, choices, getattr(objects[changed], name), *taken)
  objects[changed] = dataclasses.replace(objects[changed], **{name: value})
  return dataclasses.replace(scene, objects=tuple(objects))


def _color(scene: Scene, rng: np.random.Generator) -> Scene:
  return _with_one(scene, rng, 'color', tuple(COLORS), [shape.color for shape in scene.objects])


def _shape(scene: Scene, rng: np.random.Generator) -> Scene:
  return _with_one(scene, rng, 'shape', SHAPES, [])


def _size(scene: Scene, rng: np.random.Generator) -> Scene:
  return _with_one(scene, rng, 'size', tuple(SIZES), [])


def _background(scene: Scene, rng: np.random.Generator) -> Scene:
  return dataclasses.replace(scene, background=_other(rng, tuple(BACKGROUNDS), scene.background))


def _position(scene: Scene, rng: np.random.Generator) -> Scene:
  x, y = POSITIONS[_other(rng, tuple(POSITIONS), scene.position or '')]
  return dataclasses.replace(scene, objects=(dataclasses.replace(scene.objects[0], x=x, y=y),))


def _relation(scene: Scene, rng: np.random.Generator) -> Scene:
  """The objects stand in another relation: places exchanged, turned by a right angle, or both."""
  relation = _other(rng, RELATIONS, scene.relation or '')
  first, second = scene.objects
  places = [(first.x, first.y), (second.x, second.y)]
  beside = ('left of', 'right of')
  if (relation in beside) != (scene.relation in beside):
    places = [(y, x) for x, y in places]
  lower_first = relation in ('right of', 'below')
  places.sort(key=lambda place: place[relation not in beside], reverse=lower_first)
  objects = tuple(dataclasses.replace(shape, x=x, y=y) for shape, (x, y) in zip((first, second), places, strict=True))
  return Scene(scene.background, objects, relation)


def _exchanged_colors(scene: Scene, rng: np.random.Generator) -> Scene:
  del rng
  first, second = scene.objects
  objects = (dataclasses.replace(first, color=second.color), dataclasses.replace(second, color=first.color))
  return dataclasses.replace(scene, objects=objects)


ANY, SINGLE, PAIR = (1, 2), (1,), (2,)
# What may differ, in scenes of how many objects.
CONTRASTS: dict[str, tuple[tuple[int, ...], Callable[[Scene, np.random.Generator], Scene]]] = {
  'color': (ANY, _color),
  'shape': (ANY, _shape),
  'size': (ANY, _size),
  'background': (ANY, _background),
  'position': (SINGLE, _position),
  'relation': (PAIR, _relation),
  'exchanged_colors': (PAIR, _exchanged_colors),
}


def near_misses(claims: Claims, scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, Scene]]:
  """For each contrast by which the claims become false, its name and the changed scene."""
  for name, (counts, change) in CONTRASTS.items():
    if len(scene.objects) in counts:
      changed = change(scene, rng)
      if not claims.hold(changed):
        yield name, changed


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pictures of true scenes and of near misses, with what they stand for."""

  captions: list[str]  # P
  true: np.ndarray  # uint8 [P, H, W, 3]
  false: np.ndarray  # uint8 [Q, H, W, 3]
  of: np.ndarray  # [Q], the caption of each near miss
  contrasts: list[str]  # Q


def make_pairs(records: Sequence[dict[str, Any]], image_size: int, num_per_kind: int, seed: int) -> Pairs:
  """Near misses of the first captions, each text once, `num_per_kind` with one object and as many with two.

  Args:
    records: of captioned_shapes, with 'caption' and 'scene'.
    image_size: of the pictures, which are painted.
    num_per_kind: at most so many captions of each kind are taken.
    seed: of what is changed.
  """
  rng, kept = np.random.default_rng(seed), dict.fromkeys(KINDS, 0)
  captions, true, false, of, contrasts, seen = [], [], [], [], [], set()
  for i in range(len(records)):
    if all(count == num_per_kind for count in kept.values()):
      break
    text, scene = records[i]['caption'], Scene.from_json(records[i]['scene'])
    if text in seen or kept[len(scene.objects)] == num_per_kind:
      continue
    seen.add(text)
    kept[len(scene.objects)] += 1
    for name, changed in near_misses(language.parse(text), scene, rng):
      false.append(render(changed, image_size))
      of.append(len(captions))
      contrasts.append(name)
    captions.append(text)
    true.append(render(scene, image_size))
  return Pairs(captions, np.stack(true), np.stack(false), np.array(of), contrasts)


def scores(pairs: Pairs, texts: np.ndarray, true: np.ndarray, false: np.ndarray, split: str) -> dict[str, float]:
  """Flat figures: the share of near misses that score below the true picture, by number of objects and contrast.

  'all' is the share of captions whose true picture scores above each of its near misses.

  Args:
    pairs: what was embedded.
    texts, true, false: embeddings of the captions and of both kinds of pictures, [P, D], [P, D] and [Q, D].
    split: names the figures.
  """
  below = np.sum(texts[pairs.of] * false, axis=1) < np.sum(texts * true, axis=1)[pairs.of]
  kinds = np.array([KINDS[len(language.parse(text).objects)] for text in pairs.captions])
  names, figures = np.array(pairs.contrasts), {}
  for kind in KINDS.values():
    for name in CONTRASTS:
      members = (kinds[pairs.of] == kind) & (names == name)
      if members.any():
        figures[f'contrast/{split}/{kind}/{name}'] = float(np.mean(below[members]))
    captions = np.flatnonzero(kinds == kind)
    if len(captions):
      figures[f'contrast/{split}/{kind}/all'] = float(np.mean([np.all(below[pairs.of == i]) for i in captions]))
      figures[f'contrast/{split}/{kind}/num_captions'] = float(len(captions))
  return figures
