"""A judge for images of captioned_shapes: it reads a scene from the pixels and checks captions against it.

Reading is analysis by synthesis:
1. Resize the image to 32x32 pixels.
2. Read the background from the border.
3. Find the objects as connected patches of one palette colour.
4. Match the coverage of each object by least squares to a bank of templates: all shapes in both sizes, at offsets of an
   eighth of a pixel.
5. Render the scene that was read, and compare the rendering with the image.

An image is readable only if the rendering explains it within these tolerances. Pixels are those of the 32x32 image, and
distances between colours are Euclidean, in RGB levels of 0 to 255.

| what | tolerance |
|---|---|
| a pixel's distance from the rendering, anywhere | PIXEL_TOLERANCE; no pixel may exceed it |
| the same at least FLAT_MARGIN pixels from an outline | FLAT_TOLERANCE; the mean of 3x3 pixels: MEAN_TOLERANCE |
| the sum of squared errors of an object's coverage within FLAT_MARGIN pixels of its outline | MAX_ERROR pixels |
| the part of a pixel's error there that mixing object and background cannot give | MIXTURE_TOLERANCE |
| the same for all these pixels: the root of the sum of squares | MIXTURE_ERROR |
| the difference of an object's radius from the named size | RADIUS_TOLERANCE pixels |
| the outline's deviation with 2 to 4 waves around the object (ellipses, rounded corners) | LOW_WAVE_TOLERANCE pixels |
| the same with 5 to 12 waves (polygons for circles) | HIGH_WAVE_TOLERANCE pixels, by shape |
| the centre's distance from a named position along each axis | `scene.POSITION_TOLERANCE` |
| an object's reach over the border of the image | 0 |

The deviation of an outline is the amplitude of a wave that goes a whole number of times around the object. A regular
polygon with n corners deviates from a circle of radius r by a wave of amplitude 2 r / n^2. For circles of 4.8 pixels
(small) and 6.7 pixels (large), the amplitudes are 0.10 and 0.13 with 10 corners, and 0.07 and 0.09 with 12. So polygons
with up to 10 corners are told from circles in both sizes, and with 11 or 12 corners only in the large size.

The tolerances let reconstructions of trained dVAEs pass. A dVAE draws acute corners less exactly, most of all in
colours close to the background's, so triangles and diamonds have a wider tolerance. `tools/judge_errors.py` measures
both kinds of errors.
"""

import functools
from collections.abc import Sequence

import numpy as np

from dalle_jax.data.shapes.captions import Claims, parse
from dalle_jax.data.shapes.render import coverage, render, signed_distance
from dalle_jax.data.shapes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, Shape, relation_of

# Rises when the judge accepts other images. Version 1 compared no rendering with the image.
VERSION = 2
GRID = 32  # side in pixels to which images are resized
PATCH = 19  # side of a template in pixels; the largest shape fits in
SHIFTS = 1  # pixels by which a template may be shifted off the centre of an object's box, in each direction
PHASES = tuple(np.arange(-3.5, 4) / 8)  # positions of a template's centre within a pixel
STEPS = (1 / 16, 1 / 32)  # steps in pixels by which a matched centre is refined

# What an object is, before its form is examined.
BACKGROUND_TOLERANCE = 50  # largest RGB distance of the border's median from a background colour
BORDER_SHARE = 0.9  # share of the border's pixels that must have the background's colour
COLOR_TOLERANCE = 70  # largest RGB distance of a pixel from its palette colour
CORE_NEIGHBOURS = 3  # a core pixel needs this many of its 4 neighbours in its colour; in a thin rim only 2 have it
MIN_CORE = 3  # smallest number of pixels in an object's core

# What the rendering must explain; see the table above.
PIXEL_TOLERANCE = 100
FLAT_MARGIN = 2
FLAT_TOLERANCE = 24
MEAN_TOLERANCE = 12
MAX_ERROR = 0.8
MIXTURE_TOLERANCE = 60
MIXTURE_ERROR = 120
RADIUS_TOLERANCE = 0.12
LOW_WAVE_TOLERANCE = 0.15
HIGH_WAVE_TOLERANCE = {'circle': 0.075, 'square': 0.075, 'triangle': 0.11, 'diamond': 0.11}
LOW_WAVES, HIGH_WAVES = range(2, 5), range(5, 13)
EDGE = 0.35  # half the width in pixels over which the effect of moving an outline is measured

_COLOR_NAMES = tuple(COLORS)
_COLOR_VALUES = np.array(list(COLORS.values()), np.float32)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
_BACKGROUND_VALUES = np.array(list(BACKGROUNDS.values()), np.float32)


# --- Templates ---


@functools.cache
def _templates() -> tuple[np.ndarray, np.ndarray, list[tuple[str, str, float, float]]]:
  """Make the bank of K templates, once.

  Returns:
    Coverages [K, PATCH * PATCH], their sums of squares [K], and K labels (shape, size, dx, dy).
  """
  pixels = np.arange(PATCH) - PATCH // 2
  labels = [(shape, size, dx, dy) for shape in SHAPES for size in SIZES for dy in PHASES for dx in PHASES]
  bank = np.stack([
    coverage(shape, pixels[None, :] - dx, pixels[:, None] - dy, SIZES[size] * GRID).ravel()
    for shape, size, dx, dy in labels
  ]).astype(np.float32)  # fmt: skip
  return bank, np.square(bank).sum(-1), labels


@functools.cache
def _bank_in_parts() -> np.ndarray:
  """The coverages of the bank as [parts, PATCH * PATCH, templates per part].

  BLAS runs the product with one part on a single thread because it is small. Several threads would be many times slower
  on a busy machine.
  """
  bank = _templates()[0]
  return np.ascontiguousarray(bank.reshape(-1, len(PHASES) ** 2, PATCH * PATCH).swapaxes(1, 2))


# --- From pixels to objects ---


def _to_grid(image: np.ndarray) -> np.ndarray:
  """Resize an image uint8 [H, H, 3] to float32 [GRID, GRID, 3] by averaging areas."""
  if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.shape[0] != image.shape[1]:
    raise ValueError(f'The judge reads square uint8 images [H, H, 3]; given {image.dtype} {list(image.shape)}.')
  if len(image) < GRID:
    raise ValueError(f'The judge reads images of at least {GRID} pixels; config.data.image_size is {len(image)}.')
  if len(image) == GRID:
    return image.astype(np.float32)
  shares = _shares(len(image))
  return np.einsum('yi,ijc,xj->yxc', shares, image, shares, optimize=True)


@functools.lru_cache(maxsize=8)
def _shares(size: int) -> np.ndarray:
  """The share of each of GRID cells along an axis that each of `size` pixels covers, float32 [GRID, size]."""
  edges, pixels = np.arange(GRID + 1) * size / GRID, np.arange(size)
  overlaps = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
  return (np.maximum(overlaps, 0) * GRID / size).astype(np.float32)


def _squared_distances(image: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """Squared RGB distances [H, W, P] from an image [H, W, 3] to a palette [P, 3]."""
  return np.square(image).sum(-1)[..., None] - 2 * (image @ palette.T) + np.square(palette).sum(-1)


def _read_background(image: np.ndarray) -> int | None:
  """The index of the background colour; None if the border is not of one background colour."""
  border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
  distances = _squared_distances(np.median(border, 0)[None, None], _BACKGROUND_VALUES)[0, 0]
  index = int(distances.argmin())
  on_background = np.square(border - _BACKGROUND_VALUES[index]).sum(-1) < COLOR_TOLERANCE**2
  is_plain = distances[index] < BACKGROUND_TOLERANCE**2 and on_background.mean() >= BORDER_SHARE
  return index if is_plain else None


def _find_cores(image: np.ndarray, background: int) -> list[tuple[int, np.ndarray]]:
  """Find the core of each patch of one palette colour: pairs (colour index, pixels [N, 2]).

  Rims are left out because their mixed colours can resemble other palette colours.
  """
  palette = np.concatenate([_COLOR_VALUES, _BACKGROUND_VALUES[background : background + 1]])
  distances = _squared_distances(image, palette)
  color = distances.argmin(-1)
  color[(distances.min(-1) > COLOR_TOLERANCE**2) | (color == len(COLORS))] = -1
  inner = color[1:-1, 1:-1]
  neighbours = (color[:-2, 1:-1], color[2:, 1:-1], color[1:-1, :-2], color[1:-1, 2:])
  agreeing = np.sum([inner == neighbour for neighbour in neighbours], 0)
  core = np.full_like(color, -1)
  core[1:-1, 1:-1] = np.where(agreeing >= CORE_NEIGHBOURS, inner, -1)
  return [patch for patch in _patches(core) if len(patch[1]) >= MIN_CORE]


def _patches(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
  """Connected regions (8 neighbours) of equal label above -1: pairs (label, pixels [N, 2])."""
  remaining = {(y, x): int(labels[y, x]) for y, x in np.argwhere(labels >= 0).tolist()}
  patches = []
  while remaining:
    start, label = remaining.popitem()
    pixels, queue = [start], [start]
    while queue:
      y, x = queue.pop()
      for neighbour in [(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)]:
        if remaining.get(neighbour) == label:
          del remaining[neighbour]
          pixels.append(neighbour)
          queue.append(neighbour)
    patches.append((label, np.array(pixels)))
  return patches


def _territories(boxes: list[np.ndarray]) -> np.ndarray:
  """For each pixel the index of the nearest box (top, left, bottom, right), [GRID, GRID]."""
  rows, columns = np.arange(GRID)[:, None], np.arange(GRID)[None, :]
  distances = []
  for top, left, bottom, right in boxes:
    below = np.maximum(np.maximum(top - rows, rows - bottom), 0)
    beside = np.maximum(np.maximum(left - columns, columns - right), 0)
    distances.append(np.square(below) + np.square(beside))
  return np.argmin(distances, 0)


def _coverage_of(image: np.ndarray, background: np.ndarray, color: np.ndarray, territory: np.ndarray) -> np.ndarray:
  """The share [H, W] of each pixel that an object covers: 0 is background, 1 is object.

  `territory`, bool [H, W], marks the pixels that are nearest to this object. All other pixels have coverage 0.
  """
  direction = color - background
  alpha = (image - background) @ direction / (direction @ direction)
  return np.where(territory, np.clip(alpha, 0, 1), 0)


def _match(alpha: np.ndarray, box: np.ndarray) -> tuple[str, str, float, float]:
  """Find the shape, size and centre (x, y) in pixels that fit an object's coverage best.

  Args:
    alpha: coverage [H, W].
    box: top, left, bottom and right of the object's core in pixels.
  """
  _, energies, labels = _templates()
  margin, half = PATCH, PATCH // 2
  padded = np.pad(alpha, margin)
  y, x = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
  shifts = [(j, i) for j in range(-SHIFTS, SHIFTS + 1) for i in range(-SHIFTS, SHIFTS + 1)]
  corners = [(y + j + margin - half, x + i + margin - half) for j, i in shifts]
  windows = [padded[top : top + PATCH, left : left + PATCH].ravel() for top, left in corners]
  overlaps = (np.stack(windows) @ _bank_in_parts()).swapaxes(0, 1).reshape(len(shifts), -1)  # [shifts, K]
  errors = energies - 2 * overlaps  # of the whole image, apart from a constant
  shift, best = np.unravel_index(errors.argmin(), errors.shape)
  shape, size, dx, dy = labels[best]
  return shape, size, *_refine(alpha, shape, size, x + shifts[shift][1] + 0.5 + dx, y + shifts[shift][0] + 0.5 + dy)


def _refine(alpha: np.ndarray, shape: str, size: str, x: float, y: float) -> tuple[float, float]:
  """Move the centre (x, y) in steps of STEPS while that improves the fit to a coverage [H, W]."""
  pixels = np.arange(GRID) + 0.5
  directions = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
  for step in STEPS:
    for _ in range(4):
      moves = directions * step + (x, y)
      dx, dy = pixels[None, None, :] - moves[:, 0, None, None], pixels[None, :, None] - moves[:, 1, None, None]
      errors = np.square(alpha - coverage(shape, dx, dy, SIZES[size] * GRID)).sum((1, 2))
      best = errors.argmin()  # the first one if several are equal, so the centre stays
      x, y = moves[best]
      if best == 0:
        break
  return float(x), float(y)


# --- From objects back to pixels ---


def _explains(scene: Scene, image: np.ndarray, size: int) -> bool:
  """Whether the rendering of a scene explains an image within the tolerances.

  Args:
    scene: the scene that was read.
    image: float32 [GRID, GRID, 3].
    size: the side in pixels that the image had before it was resized.
  """
  residual = image - _to_grid(render(scene, size))
  distances = np.sqrt(np.square(residual).sum(-1))
  if distances.max() > PIXEL_TOLERANCE:
    return False
  pixels = np.arange(GRID) + 0.5
  outlines, angles = [], []
  for shape in scene.objects:
    dx, dy = pixels[None, :] - shape.x * GRID, pixels[:, None] - shape.y * GRID
    outlines.append(signed_distance(shape.shape, dx, dy, shape.radius * GRID))
    angles.append(np.arctan2(dy, dx))
  flat = np.min(np.abs(outlines), axis=0) > FLAT_MARGIN
  means = np.sqrt(np.square(_means(residual)).sum(-1))
  if distances[flat].max() > FLAT_TOLERANCE or means[flat].max() > MEAN_TOLERANCE:
    return False
  background = np.array(BACKGROUNDS[scene.background], np.float32)
  for shape, outline, angle in zip(scene.objects, outlines, angles, strict=True):
    contrast = np.array(COLORS[shape.color], np.float32) - background
    along = residual @ contrast / (contrast @ contrast)
    across = np.square(residual - along[..., None] * contrast).sum(-1)[np.abs(outline) < FLAT_MARGIN]
    if across.max() > MIXTURE_TOLERANCE**2 or across.sum() > MIXTURE_ERROR**2:
      return False
    if not _has_form(shape.shape, along, outline, angle):
      return False
  return True


def _means(residual: np.ndarray) -> np.ndarray:
  """The mean of each pixel and its 8 neighbours; both arrays are [H, W, C]."""
  height, width = residual.shape[:2]
  padded = np.pad(residual, ((1, 1), (1, 1), (0, 0)), mode='edge')
  return np.sum([padded[j : j + height, i : i + width] for j in range(3) for i in range(3)], axis=0) / 9


def _has_form(name: str, error: np.ndarray, outline: np.ndarray, angle: np.ndarray) -> bool:
  """Whether an object has the outline of its shape and size.

  Args:
    name: the shape's name.
    error: the object's coverage minus the rendered coverage, [H, W].
    outline: the signed distance of each pixel to the rendered outline.
    angle: the direction of each pixel from the object's centre, in radians.
  """
  if np.square(error[np.abs(outline) < FLAT_MARGIN]).sum() > MAX_ERROR:
    return False
  # How much the coverage of each pixel changes if the outline moves outwards, per pixel of movement.
  effect = (np.clip(0.5 - (outline - EDGE), 0, 1) - np.clip(0.5 - (outline + EDGE), 0, 1)) / (2 * EDGE)
  rim = effect > 0
  angles = np.arange(HIGH_WAVES.stop)[:, None] * angle[rim]  # [waves, pixels]
  patterns = effect[rim] * np.stack([np.cos(angles), np.sin(angles)])
  energies = np.maximum(np.square(patterns).sum(-1), 1e-9)  # the sine of no waves is 0
  amplitudes = np.hypot(*(patterns @ error[rim] / energies))
  limits = ((range(1), RADIUS_TOLERANCE), (LOW_WAVES, LOW_WAVE_TOLERANCE), (HIGH_WAVES, HIGH_WAVE_TOLERANCE[name]))
  return all(amplitudes[number] <= tolerance for waves, tolerance in limits for number in waves)


# --- The judge ---


def read(image: np.ndarray) -> Scene | None:
  """Read the scene that an image shows; None if the image is not readable.

  Args:
    image: uint8 [H, H, 3], H at least 32.

  Returns:
    A scene with one or two objects, sorted by x + y of their centres. If no relation holds between two objects, the
    relation is None.

  Raises:
    ValueError: the array has another shape or dtype.
  """
  size = len(image)
  image = _to_grid(image)
  background = _read_background(image)
  if background is None:
    return None
  cores = _find_cores(image, background)
  if len(cores) not in (1, 2):
    return None
  # A core lacks its object's rim, so each box is a pixel too small on every side. This does not favour either object.
  boxes = [np.concatenate([pixels.min(0), pixels.max(0)]) for _, pixels in cores]
  territory, shapes = _territories(boxes), []
  for index, ((color, _), box) in enumerate(zip(cores, boxes, strict=True)):
    alpha = _coverage_of(image, _BACKGROUND_VALUES[background], _COLOR_VALUES[color], territory == index)
    shape, named_size, x, y = _match(alpha, box)
    reach = SIZES[named_size] * GRID
    if not (reach <= x <= GRID - reach and reach <= y <= GRID - reach):
      return None
    shapes.append(Shape(shape, _COLOR_NAMES[color], named_size, float(x) / GRID, float(y) / GRID))
  shapes.sort(key=lambda shape: shape.x + shape.y)
  relation = relation_of(*shapes) if len(shapes) == 2 else None
  scene = Scene(_BACKGROUND_NAMES[background], tuple(shapes), relation)
  return scene if _explains(scene, image, size) else None


def satisfies(claims: Claims, image: np.ndarray) -> bool:
  """Whether an image uint8 [H, H, 3] shows all that is claimed; False if the image is not readable."""
  scene = read(image)
  return scene is not None and claims.hold(scene)


def judge(captions: list[str], images: np.ndarray) -> np.ndarray:
  """Check whether each image shows what its caption says.

  Args:
    captions: B captions in the language of `dalle_jax.data.shapes.captions`.
    images: uint8 [B, H, H, 3], H at least 32.

  Returns:
    bool [B].

  Raises:
    ValueError: a caption is not in the language, or the numbers of captions and images differ.
  """
  if len(captions) != len(images):
    raise ValueError(
      f'Given {len(captions)} captions and {len(images)} images; the judge needs one caption for each image.'
    )
  # Parse all captions first, so that an invalid one is reported before the slow reading of images.
  claims = [parse(text) for text in captions]
  return np.array([satisfies(claim, image) for claim, image in zip(claims, images, strict=True)], bool)


def judge_grid(prompts: Sequence[str], images: np.ndarray) -> np.ndarray:
  """The judge's verdicts on several images of each prompt, bool [P, N].

  Args:
    prompts: P captions of captioned_shapes.
    images: uint8 [P, N, H, W, 3].
  """
  repeated = [prompt for prompt in prompts for _ in range(images.shape[1])]
  return judge(repeated, images.reshape(-1, *images.shape[2:])).reshape(images.shape[:2])
