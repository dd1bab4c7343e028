"""An exact judge for images of captioned_shapes: it reads a scene from the pixels and checks captions against it.

Reading is analysis by synthesis:
1. Resize the image to 32x32 pixels.
2. Read the background from the border.
3. Find the objects as connected patches of one palette colour.
4. Match the coverage of each object by least squares to a bank of templates: all shapes with many radii, quarter-pixel
   offsets and blurs.
5. Render the matched objects and compare the rendering with the image.

An image is readable only if the rendering explains it. Blobs, noise or surplus marks make it unreadable.
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dalle_jax.data.shapes.captions import Claims, parse
from dalle_jax.data.shapes.render import coverage
from dalle_jax.data.shapes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, Shape, relation_of

GRID = 32  # side in pixels to which images are resized
PATCH = 19  # side of a template in pixels; the largest shape and its blur fit in
SHIFTS = 1  # pixels by which a template may be shifted off the centre of an object's box, in each direction
PHASES = (-0.375, -0.125, 0.125, 0.375)  # positions of a template's centre within a pixel
RADII = tuple(np.arange(2.8, 7.7, 0.4))  # radii of the templates in pixels
BLURS = (0.0, 0.6, 1.1)  # standard deviations of the templates' blurs in pixels
RADIUS_TOLERANCE = 0.2  # largest relative deviation of a radius from a named size

# Calibrated on blurred and noisy images of known scenes; see the tests.
BACKGROUND_TOLERANCE = 50  # largest RGB distance of the border's median from a background colour
BORDER_SHARE = 0.9  # share of the border's pixels that must have the background's colour
COLOR_TOLERANCE = 70  # largest RGB distance of a pixel from its palette colour
CORE_NEIGHBOURS = 3  # a core pixel needs this many of its 4 neighbours in its colour; in a thin rim only 2 have it
MIN_CORE = 3  # smallest number of pixels in an object's core
MAX_RESIDUAL = 0.10  # largest squared error of a match, relative to the template's sum of squares
LEFTOVER_DISTANCE = 90  # RGB distance between image and rendering above which a pixel is a leftover
MAX_LEFTOVERS = 6  # most leftover pixels, not counting outlines
FLAT = 30  # a pixel is on an outline if a channel of the rendering changes by at least this much to a neighbour

_COLOR_NAMES = tuple(COLORS)
_COLOR_VALUES = np.array(list(COLORS.values()), np.float32)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
_BACKGROUND_VALUES = np.array(list(BACKGROUNDS.values()), np.float32)


# --- Templates ---


def _blur(images: np.ndarray, sigma: float) -> np.ndarray:
  """Blur images [..., H, W] with a Gaussian; the edges wrap around."""
  if sigma == 0:
    return images
  taps = np.arange(-3, 4)
  kernel = np.exp(-0.5 * (taps / sigma) ** 2)
  for axis in (-2, -1):
    images = sum(np.roll(images, tap, axis) * weight for tap, weight in zip(taps, kernel / kernel.sum(), strict=True))
  return images


@functools.cache
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Make the bank of K templates, once.

  Returns:
    Coverages [K, PATCH * PATCH], their sums of squares [K], and labels (shape, radius, dx, dy) [K, 4].
  """
  phases = np.array(PHASES)
  radius, dy, dx = np.meshgrid(RADII, phases, phases, indexing='ij')
  pixels = np.arange(PATCH) - PATCH // 2
  offset_x = pixels[None, None, :] - dx.reshape(-1, 1, 1)
  offset_y = pixels[None, :, None] - dy.reshape(-1, 1, 1)
  banks, labels = [], []
  for index, shape in enumerate(SHAPES):
    sharp = coverage(shape, offset_x, offset_y, radius.reshape(-1, 1, 1))
    label = np.stack([np.full(radius.size, index), radius.ravel(), dx.ravel(), dy.ravel()], -1)
    banks += [_blur(sharp, sigma) for sigma in BLURS]
    labels += [label] * len(BLURS)
  bank = np.concatenate(banks).reshape(-1, PATCH * PATCH).astype(np.float32)
  return bank, np.square(bank).sum(-1), np.concatenate(labels)


@functools.cache
def _bank_in_parts() -> np.ndarray:
  """The coverages of the bank as [parts, PATCH * PATCH, templates per part].

  BLAS runs the product with one part on a single thread because it is small. Several threads would be many times slower
  on a busy machine.
  """
  bank = _templates()[0]
  return np.ascontiguousarray(bank.reshape(-1, len(PHASES) ** 2 * len(SHAPES), PATCH * PATCH).swapaxes(1, 2))


# --- From pixels to objects ---


def _to_grid(image: np.ndarray) -> np.ndarray:
  """Resize an image uint8 [H, H, 3] to float32 [GRID, GRID, 3] by averaging areas."""
  if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.shape[0] != image.shape[1]:
    raise ValueError(f'The judge reads square uint8 images [H, H, 3]; given {image.dtype} {list(image.shape)}.')
  if len(image) < GRID:
    raise ValueError(f'The judge reads images of at least {GRID} pixels; config.data.image_size is {len(image)}.')
  if len(image) != GRID:
    image = np.asarray(Image.fromarray(image).resize((GRID, GRID), Image.Resampling.BOX))
  return image.astype(np.float32)


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


def _match(alpha: np.ndarray, box: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
  """Find the template that fits an object's coverage best.

  Args:
    alpha: coverage [H, W].
    box: top, left, bottom and right of the object's core in pixels.

  Returns:
    The template's squared error relative to its sum of squares; its label (shape, radius, x, y) with the centre in
    pixels; and the template at its place in the image, [H, W].
  """
  bank, energies, labels = _templates()
  margin, half = PATCH, PATCH // 2
  padded = np.pad(alpha, margin)
  y, x = (box[0] + box[2]) // 2 + margin, (box[1] + box[3]) // 2 + margin
  shifts = [(j, i) for j in range(-SHIFTS, SHIFTS + 1) for i in range(-SHIFTS, SHIFTS + 1)]
  windows = [padded[y + j - half : y + j + half + 1, x + i - half : x + i + half + 1].ravel() for j, i in shifts]
  overlaps = (np.stack(windows) @ _bank_in_parts()).swapaxes(0, 1).reshape(len(shifts), -1)  # [shifts, K]
  errors = np.square(alpha).sum() + energies - 2 * overlaps
  # Templates compete by the absolute error. The relative error would favour large templates.
  shift, best = np.unravel_index(errors.argmin(), errors.shape)
  y, x = y + shifts[shift][0], x + shifts[shift][1]
  template = np.zeros_like(padded)
  template[y - half : y + half + 1, x - half : x + half + 1] = bank[best].reshape(PATCH, PATCH)
  shape, radius, dx, dy = labels[best]
  label = np.array([shape, radius, x - margin + 0.5 + dx, y - margin + 0.5 + dy])
  # The residual counts only pixels around the object: noise on a large background would outweigh a small object.
  reach = int(np.ceil(radius)) + 2
  around = np.s_[y - reach : y + reach + 1, x - reach : x + reach + 1]
  residual = np.square(padded[around] - template[around]).sum() / energies[best]
  return residual, label, template[margin:-margin, margin:-margin]


def _count_leftovers(image: np.ndarray, rendering: np.ndarray) -> int:
  """Count the pixels that differ from the rendering, outlines aside.

  Jagged outlines are allowed. An outline of the wrong form shows in the residual of its match.
  """
  neighbours = np.stack([np.roll(rendering, shift, axis) for axis in (0, 1) for shift in (-1, 1)])
  is_flat = np.abs(neighbours - rendering).max((0, -1)) < FLAT
  is_wrong = np.square(image - rendering).sum(-1) > LEFTOVER_DISTANCE**2
  return int((is_flat & is_wrong).sum())


def _size_of(radius: float) -> str | None:
  """The name of the size with the nearest radius; None if none is near. `radius` is a share of the image's side."""
  name = min(SIZES, key=lambda size: abs(SIZES[size] - radius))
  return name if abs(radius / SIZES[name] - 1) <= RADIUS_TOLERANCE else None


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
  image = _to_grid(image)
  background = _read_background(image)
  if background is None:
    return None
  cores = _find_cores(image, background)
  if len(cores) not in (1, 2):
    return None
  # A core lacks its object's rim, so each box is a pixel too small on every side. This does not favour either object.
  boxes = [np.concatenate([pixels.min(0), pixels.max(0)]) for _, pixels in cores]
  territory = _territories(boxes)
  background_color, shapes = _BACKGROUND_VALUES[background], []
  rendering = np.broadcast_to(background_color, image.shape)
  for index, ((color, _), box) in enumerate(zip(cores, boxes, strict=True)):
    alpha = _coverage_of(image, background_color, _COLOR_VALUES[color], territory == index)
    residual, (shape, radius, x, y), template = _match(alpha, box)
    size = _size_of(radius / GRID)
    if residual > MAX_RESIDUAL or size is None:
      return None
    rendering = rendering + template[..., None] * (_COLOR_VALUES[color] - rendering)
    shapes.append(Shape(SHAPES[int(shape)], _COLOR_NAMES[color], size, float(x) / GRID, float(y) / GRID))
  if _count_leftovers(image, rendering) > MAX_LEFTOVERS:
    return None
  shapes.sort(key=lambda shape: shape.x + shape.y)
  relation = relation_of(*shapes) if len(shapes) == 2 else None
  return Scene(_BACKGROUND_NAMES[background], tuple(shapes), relation)


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
