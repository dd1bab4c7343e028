"""Near misses of captioned_shapes: images that differ from the caption's image in one thing that the caption names.

They expose a reranker that only checks which words of the caption apply. When the colours of two objects are exchanged
or their relation changes, the image still contains all the colours and shapes that the caption names.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dalle_jax.data.batches import Source
from dalle_jax.data.shapes import captions as language
from dalle_jax.data.shapes.captions import Claims
from dalle_jax.data.shapes.render import render
from dalle_jax.data.shapes.scene import BACKGROUNDS, COLORS, POSITIONS, RELATIONS, SHAPES, SIZES, Scene
from dalle_jax.evaluation import figures
from dalle_jax.evaluation.prompt_accuracy import KINDS


def _other(rng: np.random.Generator, names: Sequence[str], *excluded: str) -> str:
  """Choose a name at random that is not in `excluded`."""
  allowed = [name for name in names if name not in excluded]
  return allowed[rng.integers(len(allowed))]


def _with_one(scene: Scene, rng: np.random.Generator, name: str, choices: Sequence[str], excluded: list[str]) -> Scene:
  """Change the attribute `name` of a random object to another of the `choices`, but none of `excluded`."""
  index = int(rng.integers(len(scene.objects)))
  objects = list(scene.objects)
  value = _other(rng, choices, getattr(objects[index], name), *excluded)
  changes: dict[str, Any] = {name: value}
  objects[index] = dataclasses.replace(objects[index], **changes)
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
  """Put the two objects in another relation: swap their centres, exchange the axes, or both."""
  relation = _other(rng, RELATIONS, scene.relation or '')
  first, second = scene.objects
  centres = [(first.x, first.y), (second.x, second.y)]
  horizontal = ('left of', 'right of')
  if (relation in horizontal) != (scene.relation in horizontal):
    centres = [(y, x) for x, y in centres]
  descending = relation in ('right of', 'below')
  centres.sort(key=lambda centre: centre[relation not in horizontal], reverse=descending)
  objects = tuple(dataclasses.replace(shape, x=x, y=y) for shape, (x, y) in zip((first, second), centres, strict=True))
  return Scene(scene.background, objects, relation)


def _exchanged_colors(scene: Scene, rng: np.random.Generator) -> Scene:
  del rng
  first, second = scene.objects
  objects = (dataclasses.replace(first, color=second.color), dataclasses.replace(second, color=first.color))
  return dataclasses.replace(scene, objects=objects)


ANY, SINGLE, PAIR = (1, 2), (1,), (2,)
# For each contrast: the numbers of objects for which it is defined, and the function that changes a scene.
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
  """Yield the name and the changed scene of every contrast that makes the claims false."""
  for name, (counts, change) in CONTRASTS.items():
    if len(scene.objects) in counts:
      changed = change(scene, rng)
      if not claims.hold(changed):
        yield name, changed


@dataclasses.dataclass(frozen=True)
class Pairs:
  """P captions with their true images, and Q near misses of these images."""

  captions: list[str]  # P captions
  true: np.ndarray  # uint8 [P, H, W, 3], the image of each caption
  false: np.ndarray  # uint8 [Q, H, W, 3], the near misses
  of: np.ndarray  # int [Q], the index of each near miss's caption
  contrasts: list[str]  # Q names of contrasts, keys of CONTRASTS


def make_pairs(records: Source, image_size: int, num_per_kind: int, seed: int) -> Pairs:
  """Render true images and near misses for the first distinct captions.

  Args:
    records: records of captioned_shapes, with 'caption' and 'scene'.
    image_size: height and width of the rendered images in pixels.
    num_per_kind: the most captions with one object, and the most captions with two.
    seed: the seed of the random changes.
  """
  rng, counts = np.random.default_rng(seed), dict.fromkeys(KINDS, 0)
  captions: list[str] = []
  true: list[np.ndarray] = []
  false: list[np.ndarray] = []
  of: list[int] = []
  contrasts: list[str] = []
  seen: set[str] = set()
  for i in range(len(records)):
    if all(count == num_per_kind for count in counts.values()):
      break
    text, scene = records[i]['caption'], Scene.from_json(records[i]['scene'])
    if text in seen or counts[len(scene.objects)] == num_per_kind:
      continue
    seen.add(text)
    counts[len(scene.objects)] += 1
    for name, changed in near_misses(language.parse(text), scene, rng):
      false.append(render(changed, image_size))
      of.append(len(captions))
      contrasts.append(name)
    captions.append(text)
    true.append(render(scene, image_size))
  return Pairs(captions, np.stack(true), np.stack(false), np.array(of), contrasts)


def scores(pairs: Pairs, texts: np.ndarray, true: np.ndarray, false: np.ndarray, split: str) -> dict[str, float]:
  """The shares of near misses that score below the true image, as flat metrics by number of objects and contrast.

  The metric 'all' is the share of captions whose true image scores above all of its near misses. Each share has its
  interval (see `figures.flat`). A caption has at most one near miss of each contrast, so these are independent.

  Args:
    pairs: the captions and images.
    texts: embeddings of the captions [P, D].
    true: embeddings of the true images [P, D].
    false: embeddings of the near misses [Q, D].
    split: the name of the split, which is part of the metric names.
  """
  below = np.sum(texts[pairs.of] * false, axis=1) < np.sum(texts * true, axis=1)[pairs.of]
  kinds = np.array([KINDS[len(language.parse(text).objects)] for text in pairs.captions])
  names = np.array(pairs.contrasts)
  metrics: dict[str, float] = {}
  for kind in KINDS.values():
    for name in CONTRASTS:
      members = (kinds[pairs.of] == kind) & (names == name)
      if members.any():
        metrics |= figures.flat(f'contrast/{split}/{kind}/{name}', figures.share(below[members]))
    captions = np.flatnonzero(kinds == kind)
    if len(captions):
      all_below = np.array([np.all(below[pairs.of == i]) for i in captions])
      metrics |= figures.flat(f'contrast/{split}/{kind}/all', figures.share(all_below))
      metrics[f'contrast/{split}/{kind}/num_captions'] = float(len(captions))
  return metrics
