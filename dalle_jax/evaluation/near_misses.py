"""A fixed list of 1,000 images that almost show what a caption says, to measure how many a judge accepts.

Every image is wrong in one stated respect: the form, size, colour, place or number of its objects, or a stray mark. The
images have the same anti-aliased outlines as captioned_shapes.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dalle_jax.data.shapes.render import SQUARE_SIDE, signed_distance
from dalle_jax.data.shapes.scene import BACKGROUNDS, COLORS, HELD_OUT_KINDS, POSITIONS, SHAPES, SIZES

SIDE = 32  # pixels
# The most corners of a polygon that the judge tells from a circle of each size; see its tolerances.
MOST_CORNERS = {'small': 10, 'large': 12}

RGB = tuple[int, int, int]
# The signed distance in pixels, negative inside, of points (x, y) in pixels from the outline of a region.
Region = Callable[[np.ndarray, np.ndarray], np.ndarray]


class NearMiss(NamedTuple):
  """An image, and a caption that is not true of it."""

  kind: str
  detail: str  # what is wrong, with numbers
  caption: str
  image: np.ndarray  # uint8 [SIDE, SIDE, 3]


# --- Regions. Lengths and centres are shares of the image's side unless they are in pixels. ---


def polygon(corners: int, radius: float, turn: float, x: float = 0.5, y: float = 0.5) -> Region:
  """A regular polygon with centre (x, y). `radius` is the distance of its corners, `turn` is in degrees."""
  angles = np.deg2rad(turn) + 2 * np.pi * (np.arange(corners) + 0.5) / corners
  apothem = SIDE * radius * np.cos(np.pi / corners)

  def distance(px: np.ndarray, py: np.ndarray) -> np.ndarray:
    sides = [np.cos(angle) * (px - x * SIDE) + np.sin(angle) * (py - y * SIDE) for angle in angles]
    return np.max(sides, axis=0) - apothem

  return distance


def shape(name: str, radius: float, x: float = 0.5, y: float = 0.5, turn: float = 0, stretch: float = 1) -> Region:
  """A shape of captioned_shapes, turned by `turn` degrees and made wider by the factor `stretch`."""
  cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))

  def distance(px: np.ndarray, py: np.ndarray) -> np.ndarray:
    dx, dy = px - x * SIDE, py - y * SIDE
    return signed_distance(name, (cos * dx + sin * dy) / stretch, cos * dy - sin * dx, radius * SIDE)

  return distance


def _box(left: float, top: float, width: float, height: float) -> Region:
  """A rectangle in pixels."""
  return lambda px, py: np.maximum(
    np.abs(px - left - width / 2) - width / 2, np.abs(py - top - height / 2) - height / 2
  )


def _without(region: Region, part: Region) -> Region:
  return lambda px, py: np.maximum(region(px, py), -part(px, py))


def _rounded(half: float, corner: float) -> Region:
  """A square in the centre with rounded corners: half its side, and the corners' radius."""

  def distance(px: np.ndarray, py: np.ndarray) -> np.ndarray:
    dx, dy = (np.abs(p - SIDE / 2) - SIDE * (half - corner) for p in (px, py))
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - SIDE * corner

  return distance


def paint(background: RGB, *layers: tuple[Region, RGB]) -> np.ndarray:
  """Paint regions over a background, later ones over earlier ones: uint8 [SIDE, SIDE, 3]."""
  pixels = np.arange(SIDE) + 0.5
  image = np.empty((SIDE, SIDE, 3))
  image[:] = background
  for region, color in layers:
    alpha = np.clip(0.5 - region(pixels[None, :], pixels[:, None]), 0, 1)[..., None]
    image += alpha * (np.array(color) - image)
  return (image + 0.5).astype(np.uint8)


# --- The list ---

Item = tuple[str, str, np.ndarray]  # detail, caption, image
_ARTICLES = {'orange': 'an'}
_PLACES = {'center': 'in the center', 'left': 'on the left', 'right': 'on the right', 'top': 'at the top',
           'bottom': 'at the bottom'}  # fmt: skip
_NEXT_PLACE = {'left': 'center', 'center': 'right', 'top': 'center', 'bottom': 'center', 'right': 'center'}


def _looks(name: str = '') -> Iterator[tuple[str, str]]:
  """Yields colours and backgrounds in turn, without end; not the colours that a shape has only in 'held_out'."""
  for color, background in zip(itertools.cycle(COLORS), itertools.cycle(BACKGROUNDS), strict=False):
    if (name, color) not in HELD_OUT_KINDS:
      yield color, background


def _all_looks() -> dict[str, Iterator[tuple[str, str]]]:
  return {name: _looks(name) for name in SHAPES}


def _noun(color: str, name: str, size: str = '') -> str:
  words = f'{size} {color}'.strip()
  return f'{_ARTICLES.get(words.split()[0], "a")} {words} {name}'


def _scene(background: str, *layers: tuple[Region, str | RGB]) -> np.ndarray:
  return paint(
    BACKGROUNDS[background], *((region, COLORS[color] if isinstance(color, str) else color) for region, color in layers)
  )


def _polygons(corners: int) -> Iterator[Item]:
  """Regular polygons for circles: inscribed, circumscribed and of equal area. See MOST_CORNERS for their sizes."""
  looks = _looks('circle')
  equal_area = np.sqrt(np.pi / (corners / 2 * np.sin(2 * np.pi / corners)))
  scales = {'inscribed in': 1, 'with the area of': equal_area, 'circumscribed to': 1 / np.cos(np.pi / corners)}
  sizes = {size: radius for size, radius in SIZES.items() if corners <= MOST_CORNERS[size]}
  for (size, radius), (fit, scale), turn in itertools.cycle(
    itertools.product(sizes.items(), scales.items(), (0, 90 / corners, 180 / corners))
  ):
    color, background = next(looks)
    detail = f'{fit} a {size} circle of radius {radius:g}, turned by {turn:.3g} degrees'
    yield detail, _noun(color, 'circle'), _scene(background, (polygon(corners, radius * scale, turn), color))


def _stray_pixels() -> Iterator[Item]:
  rng, looks = np.random.default_rng(0), _all_looks()
  for turn, (count, name) in enumerate(itertools.cycle(itertools.product(range(1, 7), SHAPES))):
    color, background = next(looks[name])
    spots = {(int(x), int(y)) for x, y in rng.integers(0, SIDE, (40, 2)) if max(abs(x - 15.5), abs(y - 15.5)) > 9}
    stray = color if turn % 3 else next(other for other in COLORS if other != color)
    boxes = [(_box(x, y, 1, 1), stray) for x, y in sorted(spots)[:: max(len(spots) // count, 1)][:count]]
    image = _scene(background, (shape(name, SIZES['large']), color), *boxes)
    yield f'{len(boxes)} {stray} pixels beside the {name}', _noun(color, name), image


def _missing_parts() -> Iterator[Item]:
  looks = _all_looks()
  for turn in itertools.count():
    for name in SHAPES:
      color, background = next(looks[name])
      for size, radius in SIZES.items():
        reach = radius * SIDE
        wholes = {
          'a hole of 2x2 pixels': _box(15, 15 + turn % 2, 2, 2),
          'a slit of 1 pixel': _box(0, SIDE / 2, SIDE, 1),
          'a notch of 3 pixels': _box(SIDE / 2 - 1.5, SIDE / 2 + reach - 3, 3, 4),
          'no right third': _box(SIDE / 2 + reach / 3, 0, SIDE, SIDE),
        }
        for detail, part in wholes.items():
          image = _scene(background, (_without(shape(name, radius), part), color))
          yield f'a {size} {name} with {detail}', _noun(color, name), image


def _merged() -> Iterator[Item]:
  """Two objects so close that they overlap or touch, for a caption with one object or with both."""
  looks = _all_looks()
  for distance in itertools.cycle((0.06, 0.12, 0.18, 0.24)):
    for name, upright in itertools.product(('circle', 'square', 'diamond'), (False, True)):
      color, background = next(looks[name])
      offset = distance / 2
      centers = ((0.5, 0.5 - offset), (0.5, 0.5 + offset)) if upright else ((0.5 - offset, 0.5), (0.5 + offset, 0.5))
      image = _scene(background, *((shape(name, SIZES['small'], *center), color) for center in centers))
      noun = _noun(color, name)
      for caption in (noun, f'{noun} {"above" if upright else "to the left of"} {noun}'):
        yield f'two small {name}s of one colour, {distance:g} apart', caption, image


def _faint_objects() -> Iterator[Item]:
  """A second object in a colour close to the background's."""
  looks = _all_looks()
  directions = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
  for distance, direction, name in itertools.cycle(
    itertools.product((24, 32, 48, 80), directions, ('circle', 'square', 'triangle'))
  ):
    color, background = next(looks[name])
    base = np.array(BACKGROUNDS[background])
    sign = 1 if background == 'black' else -1
    faint = np.clip(base + sign * distance * direction / np.linalg.norm(direction), 0, 255).round().astype(int)
    layers = (
      (shape(name, SIZES['small'], 0.25, 0.5), color),
      (shape('circle', SIZES['small'], 0.75, 0.5), tuple(faint)),
    )
    yield f'a circle of {distance} RGB levels from the background', _noun(color, name), _scene(background, *layers)


def _outlined() -> Iterator[Item]:
  """Objects with an outline of 1 pixel in another colour, inside or outside their form."""
  looks = _all_looks()
  for turn, (size, name) in enumerate(itertools.cycle(itertools.product(SIZES, SHAPES))):
    color, background = next(looks[name])
    other = tuple(COLORS)[(tuple(COLORS).index(color) + 1 + turn % 7) % len(COLORS)]
    form, reach = shape(name, SIZES[size]), turn // 8 % 2
    outer, inner = (lambda px, py, form=form, by=by: form(px, py) - by for by in (reach, reach - 1))
    detail = f'a {size} {name} with an outline in {other} {"outside" if reach else "inside"} its form'
    yield detail, _noun(color, name), _scene(background, (outer, other), (inner, color))


def _cropped() -> Iterator[Item]:
  """Objects that the edge of the image cuts off."""
  looks = _all_looks()
  places = {'left': (0, 0.5), 'right': (1, 0.5), 'top': (0.5, 0), 'bottom': (0.5, 1)}
  for inside, (place, (x, y)), name in itertools.cycle(itertools.product((0.8, 0.9), places.items(), SHAPES)):
    color, background = next(looks[name])
    distance = inside * SIZES['large']
    center = [abs(at - distance) if at in (0, 1) else at for at in (x, y)]
    image = _scene(background, (shape(name, SIZES['large'], *center), color))
    detail = f'a large {name} whose centre is {distance:.3f} from the edge'
    yield detail, f'{_noun(color, name)} {_PLACES[place]}', image


def _sizes() -> Iterator[Item]:
  looks = _all_looks()
  for radius, name in itertools.cycle(itertools.product((0.162, 0.17, 0.18, 0.19, 0.197), SHAPES)):
    color, background = next(looks[name])
    image = _scene(background, (shape(name, radius), color))
    for size in SIZES:
      yield f'a radius of {radius:g}', _noun(color, name, size), image


def _colors() -> Iterator[Item]:
  """Objects in colours between two of the palette."""
  for share, (color, other), name in itertools.cycle(
    itertools.product((0.3, 0.4, 0.5), itertools.permutations(COLORS, 2), SHAPES)
  ):
    if (name, color) in HELD_OUT_KINDS:
      continue
    mixed = tuple(np.rint(np.array(COLORS[color]) * (1 - share) + np.array(COLORS[other]) * share).astype(int))
    image = paint(BACKGROUNDS['white'], (shape(name, SIZES['large']), mixed))
    yield f'{share:.0%} of the way from {color} to {other}', _noun(color, name), image


def _backgrounds() -> Iterator[Item]:
  looks = _all_looks()
  for distance, name in itertools.cycle(itertools.product((20, 30, 40, 60), SHAPES)):
    color, background = next(looks[name])
    level = BACKGROUNDS[background][0] + (distance if background == 'black' else -distance)
    image = paint((level,) * 3, (shape(name, SIZES['large']), COLORS[color]))
    caption = f'{_noun(color, name)} on a {background} background'
    yield f'the background is {distance} levels from {background} in each channel', caption, image


def _counts() -> Iterator[Item]:
  looks = _all_looks()
  for total, name in itertools.cycle(itertools.product((2, 3, 4), SHAPES)):
    color, background = next(looks[name])
    centers = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))[:total]
    image = _scene(background, *((shape(name, SIZES['small'], *center), color) for center in centers))
    noun = _noun(color, name)
    yield f'{total} objects for one', noun, image
    if total > 2:
      yield f'{total} objects for two', f'{noun} and {noun}', image


def _relations() -> Iterator[Item]:
  """Two objects in another relation than the caption's, or too diagonal for any."""
  pairs = (('red', 'circle'), ('blue', 'square')), (('green', 'diamond'), ('pink', 'triangle'))
  spots = {'left of': ((0.25, 0.5), (0.75, 0.5)), 'above': ((0.5, 0.25), (0.5, 0.75)),
           'diagonal': ((0.28, 0.28), (0.72, 0.72))}  # fmt: skip
  for (first, second), (actual, (at, to)), claimed, background in itertools.cycle(
    itertools.product(pairs, spots.items(), ('above', 'below', 'left of', 'right of'), BACKGROUNDS)
  ):
    if claimed != actual:
      layers = ((shape(first[1], SIZES['small'], *at), first[0]), (shape(second[1], SIZES['small'], *to), second[0]))
      yield f'{actual} instead', f'{_noun(*first)} {claimed} {_noun(*second)}', _scene(background, *layers)


def _positions() -> Iterator[Item]:
  """Objects half-way between two named positions."""
  looks = _all_looks()
  for (claimed, other), name in itertools.cycle(itertools.product(_NEXT_PLACE.items(), SHAPES)):
    color, background = next(looks[name])
    x, y = np.mean([POSITIONS[claimed], POSITIONS[other]], axis=0)
    image = _scene(background, (shape(name, SIZES['small'], x, y), color))
    yield f'half-way between {claimed} and {other}', f'{_noun(color, name)} {_PLACES[claimed]}', image


def _turned() -> Iterator[Item]:
  looks = _all_looks()
  for turn, (size, radius), name in itertools.cycle(
    itertools.product((10, 15, 20, 30, -20), SIZES.items(), ('square', 'triangle', 'diamond'))
  ):
    color, background = next(looks[name])
    image = _scene(background, (shape(name, radius, turn=turn), color))
    yield f'a {size} {name} turned by {turn} degrees', _noun(color, name), image


def _stretched() -> Iterator[Item]:
  looks = _all_looks()
  for stretch, (size, radius), name in itertools.cycle(
    itertools.product((0.75, 0.85, 1.15, 1.3), SIZES.items(), SHAPES)
  ):
    color, background = next(looks[name])
    image = _scene(background, (shape(name, radius / np.sqrt(stretch), stretch=stretch), color))
    yield f'a {size} {name} whose width is {stretch:g} of its height', _noun(color, name), image


def _rounded_squares() -> Iterator[Item]:
  looks = _all_looks()
  for (size, radius), corner, name in itertools.cycle(
    itertools.product(SIZES.items(), (0.3, 0.5, 0.7), ('circle', 'square'))
  ):
    color, background = next(looks[name])
    half = radius * (0.95 if name == 'circle' else SQUARE_SIDE)
    image = _scene(background, (_rounded(half, corner * half), color))
    yield f'a {size} square with corners rounded by {corner:.0%} of half its side', _noun(color, name), image


def _wrong_attributes() -> Iterator[Item]:
  for background in itertools.cycle(BACKGROUNDS):
    for (name, (size, radius)), color in itertools.product(itertools.product(SHAPES, SIZES.items()), ('red', 'green')):
      image = _scene(background, (shape(name, radius), color))
      other_size, other_name = next(s for s in SIZES if s != size), next(n for n in SHAPES if n != name)
      for caption in (_noun(color, name, other_size), _noun(color, other_name), _noun('blue', name)):
        yield f'{size} {color} {name} instead', caption, image


_KINDS: dict[str, tuple[Callable[[], Iterator[Item]], int]] = {
  **{f'polygon with {corners} corners': (functools.partial(_polygons, corners), 25) for corners in range(5, 13)},
  'stray pixels': (_stray_pixels, 96),
  'missing part': (_missing_parts, 80),
  'merged objects': (_merged, 48),
  'faint object': (_faint_objects, 96),
  'outlined object': (_outlined, 32),
  'cropped object': (_cropped, 16),
  'size between two': (_sizes, 80),
  'color between two': (_colors, 72),
  'shifted background': (_backgrounds, 32),
  'wrong count': (_counts, 40),
  'wrong relation': (_relations, 46),
  'position between two': (_positions, 40),
  'turned shape': (_turned, 40),
  'stretched shape': (_stretched, 32),
  'rounded square': (_rounded_squares, 24),
  'wrong attribute': (_wrong_attributes, 26),
}


@functools.cache
def near_misses() -> tuple[NearMiss, ...]:
  """The 1,000 near misses, always the same."""
  return tuple(
    NearMiss(kind, *item) for kind, (items, count) in _KINDS.items() for item in itertools.islice(items(), count)
  )
