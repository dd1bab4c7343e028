"""Scenes of one or two coloured shapes: their attributes, how to sample them, and which combinations are held out.

Coordinates are fractions of the image's side. The x axis points right and the y axis points down.
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
SIZES = {'small': 0.15, 'large': 0.21}  # the radius: half the side of a square box that contains the shape
INVERSE = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
RELATIONS = tuple(INVERSE)

_COLUMNS = {'left': 0.25, '': 0.5, 'right': 0.75}
_ROWS = {'top': 0.25, '': 0.5, 'bottom': 0.75}
# The named positions 'center', 'left', ..., 'bottom right', as the coordinates of a single object's centre.
POSITIONS = {
  f'{row} {column}'.strip() or 'center': (x, y) for row, y in _ROWS.items() for column, x in _COLUMNS.items()
}
JITTER_STEP = 1 / 32  # one step of jitter; one pixel in an image of 32 x 32 pixels
MAX_JITTER = 1  # the largest jitter, in steps, at which every position and relation is still unambiguous
POSITION_TOLERANCE = 0.09  # maximum distance from a named position along each axis

# Two objects lie at 1/4 and 3/4 of the relation's axis, near the middle of the other axis. Large objects are jittered
# only along the other axis. In an image of 32 x 32 pixels, the objects are therefore more than 2 pixels apart and more
# than 1 pixel from the edge.
MIN_SEPARATION = 0.25  # minimum distance between two centres along the relation's axis
MIN_ELONGATION = 1.5  # minimum ratio of the distance along the relation's axis to the distance along the other axis

# (shape, colour) of an object.
HELD_OUT_KINDS = frozenset({
  ('circle', 'purple'), ('square', 'cyan'), ('triangle', 'orange'), ('diamond', 'red'),
})  # fmt: skip
# (relation, attribute of the first object, attribute of the second). The attribute is a shape or a colour. Only 'above'
# and 'left of' occur, because `_canonical` rewrites the other relations.
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
  """An object: the names of its attributes, and its centre (x, y) with both coordinates in [0, 1]."""

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
    """Half the side of a square box that contains the shape, as a fraction of the image's side."""
    return SIZES[self.size]


@dataclasses.dataclass(frozen=True)
class Scene:
  """A background and one or two objects. `relation` describes where the first object is relative to the second."""

  background: str
  objects: tuple[Shape, ...]
  relation: str | None = None

  def __post_init__(self) -> None:
    _check('Background', self.background, BACKGROUNDS)
    _check('Relation', self.relation, (None, *RELATIONS))
    if len(self.objects) not in (1, 2) or (len(self.objects) == 1 and self.relation):
      raise ValueError(
        f'A scene must have 1 object without a relation, or 2 objects; given {len(self.objects)} with relation '
        f'{self.relation!r}.'
      )

  @property
  def position(self) -> str | None:
    """The named position of a single object. None for two objects, or if the object is between two positions."""
    return position_of(self.objects[0].x, self.objects[0].y) if len(self.objects) == 1 else None

  def to_json(self) -> str:
    """Serializes the scene as JSON."""
    # `vars` is ten times faster than dataclasses.asdict, which is noticeable when a data set is written.
    values = {**vars(self), 'objects': [vars(shape) for shape in self.objects]}
    return json.dumps(values, separators=(',', ':'))

  @classmethod
  def from_json(cls, text: str) -> 'Scene':
    """Parses a scene that `to_json` wrote.

    Raises:
      ValueError: the text is not JSON or does not describe a scene.
    """
    try:
      values = json.loads(text)
      return cls(values['background'], tuple(Shape(**shape) for shape in values['objects']), values['relation'])
    except (KeyError, TypeError) as error:
      raise ValueError(f'This is not the JSON of a scene ({error}): {text[:200]!r}.') from None


def position_of(x: float, y: float) -> str | None:
  """Returns the named position within POSITION_TOLERANCE of (x, y) along both axes, or None."""
  for name, (px, py) in POSITIONS.items():
    if abs(x - px) <= POSITION_TOLERANCE and abs(y - py) <= POSITION_TOLERANCE:
      return name
  return None


def relation_of(first: Shape, second: Shape) -> str | None:
  """Returns where the first object's centre is relative to the second's, or None if that is ambiguous.

  It is ambiguous if the centres are closer than MIN_SEPARATION or the offset is too diagonal (MIN_ELONGATION).
  """
  dx, dy = second.x - first.x, second.y - first.y
  along, across = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
  if along < MIN_SEPARATION or along < MIN_ELONGATION * across:
    return None
  if abs(dx) > abs(dy):
    return 'left of' if dx > 0 else 'right of'
  return 'above' if dy > 0 else 'below'


def _canonical(scene: Scene) -> tuple[str | None, Shape, Shape]:
  """Describes a two-object scene with 'left of' or 'above'. For example, 'a below b' becomes 'b above a'.

  Returns:
    The relation, if there is one, the first object and the second object.
  """
  first, second = scene.objects
  if scene.relation in ('right of', 'below'):
    return INVERSE[scene.relation], second, first
  return scene.relation, first, second


def relation_is_held_out(scene: Scene) -> bool:
  """Whether two objects' shapes, or their colours, are in a relation that never occurs in training."""
  if len(scene.objects) != 2:
    return False
  relation, first, second = _canonical(scene)
  pairs = ((relation, first.shape, second.shape), (relation, first.color, second.color))
  return any(pair in HELD_OUT_RELATIONS for pair in pairs)


def is_held_out(scene: Scene) -> bool:
  """Whether the scene has a combination of attributes that never occurs in the splits 'train' and 'validation'.

  This is so if an object's (shape, colour) is in HELD_OUT_KINDS (4 of 32), or if the two shapes or the two colours are
  in a relation of HELD_OUT_RELATIONS (6 of 32 for shapes, 6 of 112 for colours). Every single shape, colour, size,
  position, background and relation does occur in training.
  """
  kinds = ((shape.shape, shape.color) for shape in scene.objects)
  return any(kind in HELD_OUT_KINDS for kind in kinds) or relation_is_held_out(scene)


def sample_scene(rng: np.random.Generator, two_objects: bool, held_out: bool, jitter: int = MAX_JITTER) -> Scene:
  """Samples a scene.

  Args:
    rng: source of the random choices.
    two_objects: whether the scene has two objects instead of one.
    held_out: whether the scene has a held-out combination of attributes, see `is_held_out`.
    jitter: maximum offset of a centre along each axis, in steps of JITTER_STEP; at most MAX_JITTER.
  """
  sample = _sample_pair if two_objects else _sample_single
  while True:
    scene = sample(rng, jitter)
    if is_held_out(scene) == held_out:
      return scene


def _choose(rng: np.random.Generator, names) -> str:
  return tuple(names)[rng.integers(len(names))]


def _jittered(rng: np.random.Generator, value: float, jitter: int) -> float:
  return value + int(rng.integers(-jitter, jitter + 1)) * JITTER_STEP


def _sample_single(rng: np.random.Generator, jitter: int) -> Scene:
  x, y = POSITIONS[_choose(rng, POSITIONS)]
  shape, color, size = _choose(rng, SHAPES), _choose(rng, COLORS), _choose(rng, SIZES)
  jitter = jitter if size == 'small' else 0
  only_object = Shape(shape, color, size, _jittered(rng, x, jitter), _jittered(rng, y, jitter))
  return Scene(_choose(rng, BACKGROUNDS), (only_object,))


def _sample_pair(rng: np.random.Generator, jitter: int) -> Scene:
  relation = _choose(rng, RELATIONS)
  first_color = _choose(rng, COLORS)
  second_color = _choose(rng, [color for color in COLORS if color != first_color])
  first_is_far = relation in ('right of', 'below')  # far from the origin, which is the top left corner
  objects = []
  for color, is_far in ((first_color, first_is_far), (second_color, not first_is_far)):
    size = _choose(rng, SIZES)
    along_axis = _jittered(rng, 0.75 if is_far else 0.25, jitter if size == 'small' else 0)
    across_axis = _jittered(rng, 0.5, jitter)
    x, y = (along_axis, across_axis) if relation in ('left of', 'right of') else (across_axis, along_axis)
    objects.append(Shape(_choose(rng, SHAPES), color, size, x, y))
  return Scene(_choose(rng, BACKGROUNDS), tuple(objects), relation)
