"""Scenes of one or two coloured shapes: their attributes, how they are drawn at random, and which are held out.

Coordinates are fractions of the picture's side, x to the right and y downwards.
"""

import dataclasses
import json

import numpy as np

SHAPES = ('circle', 'square', 'triangle', 'diamond')
COLORS = {
  'red': (220, 40, 40),
  'green': (40, 160, 60),
  'blue': (40, 70, 215),
  'yellow': (255, 235, 60),
  'purple': (130, 30, 170),
  'orange': (250, 145, 30),
  'cyan': (40, 200, 220),
  'pink': (250, 140, 190),
}
BACKGROUNDS = {'white': (255, 255, 255), 'gray': (128, 128, 128), 'black': (0, 0, 0)}
SIZES = {'small': 0.15, 'large': 0.21}  # half the side of the box that holds the shape
INVERSE = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
RELATIONS = tuple(INVERSE)

_COLUMNS = {'left': 0.25, '': 0.5, 'right': 0.75}
_ROWS = {'top': 0.25, '': 0.5, 'bottom': 0.75}
# Where the centre of a single object lies; 'center', 'left', ..., 'bottom right'.
POSITIONS = {
  f'{row} {column}'.strip() or 'center': (x, y) for row, y in _ROWS.items() for column, x in _COLUMNS.items()
}
JITTER_STEP = 1 / 32  # centres are moved by whole steps: at 32x32 a pixel
MAX_JITTER = 1  # steps either way that leave every position and relation clear
POSITION_TOLERANCE = 0.09  # a centre farther than this from every position has none

# Two objects lie at a quarter and three quarters of one axis and near the middle of the other. Large ones do not move,
# save across that axis, which leaves two of them more than 2 pixels apart, and any 1 pixel from the edge, at 32x32.
MIN_SEPARATION = 0.25  # of two centres, for a relation to hold
MIN_ELONGATION = 1.5  # the separation along the relation's axis over that across it

HELD_OUT_KINDS = frozenset({
  ('circle', 'purple'), ('square', 'cyan'), ('triangle', 'orange'), ('diamond', 'red'),
})  # fmt: skip
# (relation, attribute of the first, attribute of the second), with 'left of' and 'above' only: see `_canonical`.
HELD_OUT_RELATIONS = frozenset({
  ('above', 'square', 'circle'), ('above', 'triangle', 'diamond'), ('above', 'circle', 'triangle'),
  ('left of', 'circle', 'triangle'), ('left of', 'diamond', 'circle'), ('left of', 'square', 'square'),
  ('above', 'green', 'blue'), ('above', 'orange', 'pink'), ('above', 'yellow', 'red'),
  ('left of', 'blue', 'yellow'), ('left of', 'cyan', 'green'), ('left of', 'pink', 'purple'),
})  # fmt: skip


def _check(kind: str, value: object, allowed) -> None:
  if value not in allowed:
    raise ValueError(f'{kind} {value!r} is unknown; allowed are {", ".join(map(str, allowed))}.')


@dataclasses.dataclass(frozen=True)
class Shape:
  """One object: the names of its attributes and its centre (x, y) in [0, 1]."""

  shape: str
  color: str
  size: str
  x: float
  y: float

  def __post_init__(self) -> None:
    _check('Shape', self.shape, SHAPES)
    _check('Color', self.color, COLORS)
    _check('Size', self.size, SIZES)
    if not (0 <= self.x <= 1 and 0 <= self.y <= 1):
      raise ValueError(f'The centre ({self.x}, {self.y}) of a {self.shape} must lie in [0, 1] x [0, 1].')

  @property
  def radius(self) -> float:
    return SIZES[self.size]


@dataclasses.dataclass(frozen=True)
class Scene:
  """A background and one or two objects; `relation` says how the first stands to the second."""

  background: str
  objects: tuple[Shape, ...]
  relation: str | None = None

  def __post_init__(self) -> None:
    _check('Background', self.background, BACKGROUNDS)
    _check('Relation', self.relation, (None, *RELATIONS))
    if len(self.objects) not in (1, 2) or (len(self.objects) == 1 and self.relation):
      raise ValueError(
        f'A scene has 1 object, or 2 and a relation; given {len(self.objects)} with relation {self.relation!r}.'
      )

  @property
  def position(self) -> str | None:
    """The named position of a single object; None for two objects or between the positions."""
    return position_of(self.objects[0].x, self.objects[0].y) if len(self.objects) == 1 else None

  def to_json(self) -> str:
    # vars, not dataclasses.asdict: it is ten times faster, and shows when a data set is written.
    values = {**vars(self), 'objects': [vars(shape) for shape in self.objects]}
    return json.dumps(values, separators=(',', ':'))

  @classmethod
  def from_json(cls, text: str) -> 'Scene':
    """The inverse of `to_json`. Raises ValueError for text that describes no scene."""
    try:
      values = json.loads(text)
      return cls(values['background'], tuple(Shape(**shape) for shape in values['objects']), values['relation'])
    except (KeyError, TypeError) as error:
      raise ValueError(f'This is not the JSON of a scene ({error}): {text[:200]!r}.') from None


def position_of(x: float, y: float) -> str | None:
  """The name of the position within POSITION_TOLERANCE of (x, y) along both axes, or None."""
  for name, (px, py) in POSITIONS.items():
    if abs(x - px) <= POSITION_TOLERANCE and abs(y - py) <= POSITION_TOLERANCE:
      return name
  return None


def relation_of(first: Shape, second: Shape) -> str | None:
  """How the first object stands to the second, from their centres; None where that is not clear."""
  dx, dy = second.x - first.x, second.y - first.y
  along, across = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
  if along < MIN_SEPARATION or along < MIN_ELONGATION * across:
    return None
  if abs(dx) > abs(dy):
    return 'left of' if dx > 0 else 'right of'
  return 'above' if dy > 0 else 'below'


def _canonical(scene: Scene) -> tuple[str, Shape, Shape]:
  """The same two-object scene told with 'left of' or 'above': 'a below b' is 'b above a'."""
  first, second = scene.objects
  if scene.relation in ('right of', 'below'):
    return INVERSE[scene.relation], second, first
  return scene.relation, first, second


def relation_is_held_out(scene: Scene) -> bool:
  """Whether the scene puts two shapes, or two colours, into a relation that training never shows."""
  if len(scene.objects) != 2:
    return False
  relation, first, second = _canonical(scene)
  pairs = ((relation, first.shape, second.shape), (relation, first.color, second.color))
  return any(pair in HELD_OUT_RELATIONS for pair in pairs)


def is_held_out(scene: Scene) -> bool:
  """Whether the scene combines known attributes in a way that train and validation never show.

  True if an object is of a kind (shape, colour) in HELD_OUT_KINDS (4 of 32), or if the two objects' shapes or
  colours stand in a relation in HELD_OUT_RELATIONS (6 of 32 and 6 of 112). Every shape, colour, size, position,
  background and relation by itself remains in the training data.
  """
  kinds = ((shape.shape, shape.color) for shape in scene.objects)
  return any(kind in HELD_OUT_KINDS for kind in kinds) or relation_is_held_out(scene)


def sample_scene(rng: np.random.Generator, two_objects: bool, held_out: bool, jitter: int = MAX_JITTER) -> Scene:
  """A random scene with one or two objects for which `is_held_out` equals `held_out`.

  Centres lie up to `jitter` steps, at most MAX_JITTER, from their places.
  """
  draw = _draw_pair if two_objects else _draw_single
  while True:
    scene = draw(rng, jitter)
    if is_held_out(scene) == held_out:
      return scene


def _choose(rng: np.random.Generator, names) -> str:
  return tuple(names)[rng.integers(len(names))]


def _near(rng: np.random.Generator, value: float, jitter: int) -> float:
  return value + int(rng.integers(-jitter, jitter + 1)) * JITTER_STEP


def _draw_single(rng: np.random.Generator, jitter: int) -> Scene:
  x, y = POSITIONS[_choose(rng, POSITIONS)]
  shape, color, size = _choose(rng, SHAPES), _choose(rng, COLORS), _choose(rng, SIZES)
  jitter = jitter if size == 'small' else 0
  shape = Shape(shape, color, size, _near(rng, x, jitter), _near(rng, y, jitter))
  return Scene(_choose(rng, BACKGROUNDS), (shape,))


def _draw_pair(rng: np.random.Generator, jitter: int) -> Scene:
  relation = _choose(rng, RELATIONS)
  first_color = _choose(rng, COLORS)
  second_color = _choose(rng, [color for color in COLORS if color != first_color])
  first_is_lower = relation in ('right of', 'below')
  objects = []
  for color, far in ((first_color, first_is_lower), (second_color, not first_is_lower)):
    size = _choose(rng, SIZES)
    along = _near(rng, 0.75 if far else 0.25, jitter if size == 'small' else 0)
    across = _near(rng, 0.5, jitter)
    x, y = (along, across) if relation in ('left of', 'right of') else (across, along)
    objects.append(Shape(_choose(rng, SHAPES), color, size, x, y))
  return Scene(_choose(rng, BACKGROUNDS), tuple(objects), relation)
