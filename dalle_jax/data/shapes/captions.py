"""Write captions for scenes and parse them: `caption` samples one of many wordings, `parse` reads all of them.

The grammar has sentences for one object and for two objects. Brackets mark optional parts:

  [there is | a picture of | an image of] a [large] red circle [on the left [of a white background] | on a white background]
  [...] a [large] red circle above a [small] blue square [on a white background]
  [...] a white background with a [large] red circle [on the left | above a [small] blue square]
"""  # noqa: E501

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dalle_jax.data.shapes.scene import (
  BACKGROUNDS,
  COLORS,
  INVERSE,
  SHAPES,
  Scene,
  Shape,
  relation_is_held_out,
)

MAX_WORDS = 16
EXAMPLES = (
  'a large red circle above a small blue square',
  'a green diamond on the left of a white background',
)

# The first wording of each is the most frequent one; see `_wording`.
_SIZE_WORDS: dict[str, tuple[str, ...]] = {'small': ('small', 'little'), 'large': ('large', 'big')}
_RELATION_WORDS: dict[str, tuple[str, ...]] = {
  'above': ('above', 'over'),
  'below': ('below', 'under'),
  'left of': ('to the left of', 'left of'),
  'right of': ('to the right of', 'right of'),
}
_POSITION_WORDS: dict[str, tuple[str, ...]] = {
  'center': ('in the center', 'in the middle'),
  'left': ('on the left',),
  'right': ('on the right',),
  'top': ('at the top',),
  'bottom': ('at the bottom',),
  'top left': ('in the top left corner', 'at the top left'),
  'top right': ('in the top right corner', 'at the top right'),
  'bottom left': ('in the bottom left corner', 'at the bottom left'),
  'bottom right': ('in the bottom right corner', 'at the bottom right'),
}
_OPENINGS = ('there is', 'a picture of', 'an image of')


@dataclasses.dataclass(frozen=True)
class ObjectClaim:
  """What a caption says about one object. A size of None means that the caption does not mention the size."""

  shape: str
  color: str
  size: str | None = None

  def holds(self, shape: Shape) -> bool:
    """Whether the claim is true of an object."""
    return (self.shape, self.color) == (shape.shape, shape.color) and self.size in (None, shape.size)


@dataclasses.dataclass(frozen=True)
class Claims:
  """What a caption says about a scene. None means that the caption does not mention the attribute.

  `relation` describes where the first object is relative to the second.
  """

  objects: tuple[ObjectClaim, ...]
  position: str | None = None
  background: str | None = None
  relation: str | None = None

  def hold(self, scene: Scene) -> bool:
    """Whether all claims are true of the scene, including the number of objects, in either order of the objects."""
    if len(self.objects) != len(scene.objects):
      return False
    if self.background not in (None, scene.background) or self.position not in (None, scene.position):
      return False
    if self._match(scene.objects, scene.relation):
      return True
    return len(scene.objects) == 2 and self._match(scene.objects[::-1], _look_up(INVERSE, scene.relation))

  def _match(self, shapes: tuple[Shape, ...], relation: str | None) -> bool:
    objects_hold = all(claim.holds(shape) for claim, shape in zip(self.objects, shapes, strict=True))
    return objects_hold and self.relation in (None, relation)


def _look_up(table: Mapping[str, str], key: str | None) -> str | None:
  return None if key is None else table.get(key)


# --- Writing captions ---
# Captions are part of the data set: another order of random choices would change every caption.


def _chance(rng: np.random.Generator, probability: float) -> bool:
  return rng.random() < probability


def _wording(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
  return choices[0] if _chance(rng, 0.7) else choices[rng.integers(len(choices))]


def _noun(shape: Shape, rng: np.random.Generator, with_size: bool) -> str:
  words = f'{_wording(rng, _SIZE_WORDS[shape.size])} {shape.color}' if with_size else shape.color
  return f'{"an" if words[0] in "aeiou" else "a"} {words} {shape.shape}'


def _one_object(scene: Scene, rng: np.random.Generator) -> str:
  noun = _noun(scene.objects[0], rng, _chance(rng, 0.6))
  background = f'a {scene.background} background' if _chance(rng, 0.5) else ''
  position = ''
  if scene.position is not None and _chance(rng, 0.7):
    position = _wording(rng, _POSITION_WORDS[scene.position])
  if background and _chance(rng, 0.2):
    return f'{background} with {noun} {position}'.strip()
  if background:
    return f'{noun} {position} of {background}' if position else f'{noun} on {background}'
  return f'{noun} {position}'.strip()


def _two_objects(scene: Scene, rng: np.random.Generator) -> str:
  (first, second), relation = scene.objects, scene.relation
  if _chance(rng, 0.5):
    first, second, relation = second, first, _look_up(INVERSE, relation)
  # Always mention a held-out relation. Without it the caption would describe a combination that training shows.
  if relation is None or (_chance(rng, 0.08) and not relation_is_held_out(scene)):
    link = 'and'
  else:
    link = _wording(rng, _RELATION_WORDS[relation])
  with_sizes = _chance(rng, 0.6)
  nouns = f'{_noun(first, rng, with_sizes)} {link} {_noun(second, rng, with_sizes)}'
  if not _chance(rng, 0.35):
    return nouns
  background = f'a {scene.background} background'
  return f'{background} with {nouns}' if _chance(rng, 0.2) else f'{nouns} on {background}'


def caption(scene: Scene, rng: np.random.Generator) -> str:
  """Samples a caption of a scene: a lower-case sentence of at most MAX_WORDS words that is true of the scene."""
  text = (_two_objects if len(scene.objects) == 2 else _one_object)(scene, rng)
  opening = _OPENINGS[rng.integers(len(_OPENINGS))] if _chance(rng, 0.4) else ''
  opened = f'{opening} {text}'.strip()
  return opened if len(opened.split()) <= MAX_WORDS else text


# --- Parsing captions ---


def _invert(wordings: dict[str, tuple[str, ...]]) -> dict[str, str]:
  """Maps each wording to its meaning, e.g. 'under' to 'below'."""
  return {words: meaning for meaning, choices in wordings.items() for words in choices}


_SIZE_OF, _RELATION_OF, _POSITION_OF = map(_invert, (_SIZE_WORDS, _RELATION_WORDS, _POSITION_WORDS))


def _group(name: str, choices) -> str:
  return f'(?P<{name}>{"|".join(choices)})'


def _noun_pattern(name: str) -> str:
  size, color, shape = (
    _group(f'{name}_size', _SIZE_OF),
    _group(f'{name}_color', COLORS),
    _group(f'{name}_shape', SHAPES),
  )
  return f'an? (?:{size} )?{color} {shape}'


def _patterns() -> tuple[re.Pattern, ...]:
  opening = f'(?:(?:{"|".join(_OPENINGS)}) )?'
  background = f'an? {_group("background", BACKGROUNDS)} background'
  position = _group('position', _POSITION_OF)
  first, second = _noun_pattern('first'), _noun_pattern('second')
  pair = f'{first} (?:and|{_group("relation", _RELATION_OF)}) {second}'
  sentences = (
    f'{first}(?: {position})?',
    f'{first} (?:{position} of|on) {background}',
    f'{background} with {first}(?: {position})?',
    pair,
    f'{pair} on {background}',
    f'{background} with {pair}',
  )
  return tuple(re.compile(opening + sentence) for sentence in sentences)


_PATTERNS = _patterns()
_PHRASES = (*_OPENINGS, *_SIZE_OF, *_RELATION_OF, *_POSITION_OF, *COLORS, *SHAPES, *BACKGROUNDS)
VOCABULARY = frozenset(' '.join(('a an and on of with background', *_PHRASES)).split())


def _object_claim(groups: dict[str, Any], name: str) -> ObjectClaim:
  size = _look_up(_SIZE_OF, groups[f'{name}_size'])
  return ObjectClaim(groups[f'{name}_shape'], groups[f'{name}_color'], size)


def parse(text: str) -> Claims:
  """Parses a caption.

  Args:
    text: a sentence of the grammar at the top of this file. Case, repeated spaces and a final full stop are ignored.

  Raises:
    ValueError: the text does not follow the grammar. The message names unknown words.
  """
  words = text.lower().strip().removesuffix('.').split()
  for pattern in _PATTERNS:
    if match := pattern.fullmatch(' '.join(words)):
      groups = match.groupdict()
      names = ('first', 'second') if 'second_shape' in groups else ('first',)
      return Claims(
        tuple(_object_claim(groups, name) for name in names),
        _look_up(_POSITION_OF, groups.get('position')),
        groups.get('background'),
        _look_up(_RELATION_OF, groups.get('relation')),
      )
  unknown_words = [word for word in words if word not in VOCABULARY]
  reason = f'unknown words {unknown_words}' if unknown_words else 'its words are known, but not in this order'
  raise ValueError(f'Cannot read the caption {text!r}: {reason}. Write it like {EXAMPLES[0]!r} or {EXAMPLES[1]!r}.')
