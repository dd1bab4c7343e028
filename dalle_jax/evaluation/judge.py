"""An exact judge for pictures of shapes: reads a scene back from pixels, and checks captions against it.

Reading is analysis by synthesis. The picture is brought to 32x32; the border gives the background; patches of one
palette colour give the objects; each object's soft coverage is matched, by least squares, against a bank of painted
shapes (all shapes, a range of radii, quarter-pixel offsets, sharp and slightly blurred). A picture is readable only if
the best match explains it: blobs, noise and leftovers are no scenes.
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dalle_jax.data.shapes.captions import Claims, parse
from dalle_jax.data.shapes.render import coverage
from dalle_jax.data.shapes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, Shape, relation_of

GRID = 32  # pictures are read at this size
PATCH = 19  # side of the window that is matched; holds the largest template and its blur
SHIFTS = 1  # pixels by which the window may lie off the object, in each direction
PHASES = (-0.375, -0.125, 0.125, 0.375)  # of a template's centre within a pixel
RADII = tuple(np.arange(2.8, 7.7, 0.4))  # pixels
BLURS = (0.0, 0.6, 1.1)  # standard deviations in pixels
RADIUS_TOLERANCE = 0.2  # of a size's radius

# Calibrated on blurred and noisy pictures of known scenes; see the tests.
BACKGROUND_TOLERANCE = 50  # RGB distance of the border's median from a background
BORDER_SHARE = 0.9  # of the border that must have the background's colour
COLOR_TOLERANCE = 70  # RGB distance of a pixel from its colour
CORE_NEIGHBOURS = 3  # of a pixel's four that must have its colour for it to be in a core; a thin rim's have 2
MIN_CORE = 3  # pixels
MAX_RESIDUAL = 0.10  # squared error of the coverage over the template's own sum of squares
LEFTOVER_DISTANCE = 90  # RGB distance of a pixel from the picture painted anew
MAX_LEFTOVERS = 6  # such pixels outside of outlines
FLAT = 30  # the largest step to a neighbour, in any channel, outside of outlines

_COLOR_NAMES = tuple(COLORS)
_COLOR_VALUES = np.array(list(COLORS.values()), np.float32)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
_BACKGROUND_VALUES = np.array(list(BACKGROUNDS.values()), np.float32)


# --- Templates ---


def _blur(images: np.ndarray, sigma: float) -> np.ndarray:
  """Gaussian blur of [..., H, W]."""
  if sigma == 0:
    return images
  taps = np.arange(-3, 4)
  kernel = np.exp(-0.5 * (taps / sigma) ** 2)
  for axis in (-2, -1):
    images = sum(np.roll(images, tap, axis) * weight for tap, weight in zip(taps, kernel / kernel.sum(), strict=True))
  return images


@functools.cache
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The bank, made once: coverages [K, PATCH * PATCH], their sums of squares [K], (shape, radius, dx, dy) [K, 4]."""
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
  """The bank as [parts, PATCH * PATCH, templates per part].

  A product with one part is too small for BLAS to spread over threads, which on a busy machine is many times slower.
  """
  bank = _templates()[0]
  return np.ascontiguousarray(bank.reshape(-1, len(PHASES) ** 2 * len(SHAPES), PATCH * PATCH).swapaxes(1, 2))


# --- From pixels to objects ---


def _to_grid(image: np.ndarray) -> np.ndarray:
  """float32 [GRID, GRID, 3] by averaging areas."""
  if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.shape[0] != image.shape[1]:
    raise ValueError(f'The judge reads square uint8 pictures [H, H, 3]; given {image.dtype} {list(image.shape)}.')
  if len(image) < GRID:
    raise ValueError(f'The judge reads pictures of at least {GRID} pixels; config.data.image_size is {len(image)}.')
  if len(image) != GRID:
    image = np.asarray(Image.fromarray(image).resize((GRID, GRID), Image.Resampling.BOX))
  return image.astype(np.float32)


def _squared_distances(image: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """[H, W, 3] and [P, 3] to [H, W, P]."""
  return np.square(image).sum(-1)[..., None] - 2 * (image @ palette.T) + np.square(palette).sum(-1)


def _read_background(image: np.ndarray) -> int | None:
  border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
  distances = _squared_distances(np.median(border, 0)[None, None], _BACKGROUND_VALUES)[0, 0]
  index = int(distances.argmin())
  on_background = np.square(border - _BACKGROUND_VALUES[index]).sum(-1) < COLOR_TOLERANCE**2
  is_plain = distances[index] < BACKGROUND_TOLERANCE**2 and on_background.mean() >= BORDER_SHARE
  return index if is_plain else None


def _find_cores(image: np.ndarray, background: int) -> list[tuple[int, np.ndarray]]:
  """(colour, pixels [N, 2]) of each patch of one colour without its rim: a rim's mixed colours can look like others."""
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
  """Connected regions (8 neighbours) of equal label above -1."""
  left = {(y, x): int(labels[y, x]) for y, x in np.argwhere(labels >= 0).tolist()}
  patches = []
  while left:
    start, label = left.popitem()
    found, queue = [start], [start]
    while queue:
      y, x = queue.pop()
      for near in [(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)]:
        if left.get(near) == label:
          del left[near]
          found.append(near)
          queue.append(near)
    patches.append((label, np.array(found)))
  return patches


def _territories(boxes: list[np.ndarray]) -> np.ndarray:
  """For each pixel [H, W] the index of the nearest box (top, left, bottom, right)."""
  rows, columns = np.arange(GRID)[:, None], np.arange(GRID)[None, :]
  distances = []
  for top, left, bottom, right in boxes:
    below = np.maximum(np.maximum(top - rows, rows - bottom), 0)
    beside = np.maximum(np.maximum(left - columns, columns - right), 0)
    distances.append(np.square(below) + np.square(beside))
  return np.argmin(distances, 0)


def _coverage_of(image: np.ndarray, background: np.ndarray, color: np.ndarray, mine: np.ndarray) -> np.ndarray:
  """The share [H, W] of an object's colour in each pixel of its territory: 0 is background, 1 is object."""
  direction = color - background
  alpha = (image - background) @ direction / (direction @ direction)
  return np.where(mine, np.clip(alpha, 0, 1), 0)


def _match(alpha: np.ndarray, box: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
  """The template nearest to a coverage.

  Returns:
    Its relative squared error; its label (shape, radius, x, y) with the centre in pixels; its painting [H, W].
  """
  bank, energies, labels = _templates()
  margin, half = PATCH, PATCH // 2
  padded = np.pad(alpha, margin)
  y, x = (box[0] + box[2]) // 2 + margin, (box[1] + box[3]) // 2 + margin
  shifts = [(j, i) for j in range(-SHIFTS, SHIFTS + 1) for i in range(-SHIFTS, SHIFTS + 1)]
  windows = [padded[y + j - half : y + j + half + 1, x + i - half : x + i + half + 1].ravel() for j, i in shifts]
  overlaps = (np.stack(windows) @ _bank_in_parts()).swapaxes(0, 1).reshape(len(shifts), -1)  # [shifts, K]
  errors = np.square(alpha).sum() + energies - 2 * overlaps
  # Templates compete by the plain error; a large one would win by the relative one.
  shift, best = np.unravel_index(errors.argmin(), errors.shape)
  y, x = y + shifts[shift][0], x + shifts[shift][1]
  painted = np.zeros_like(padded)
  painted[y - half : y + half + 1, x - half : x + half + 1] = bank[best].reshape(PATCH, PATCH)
  shape, radius, dx, dy = labels[best]
  label = np.array([shape, radius, x - margin + 0.5 + dx, y - margin + 0.5 + dy])
  # Around the object only: noise on the rest of a large background would outweigh a small object.
  near = int(np.ceil(radius)) + 2
  around = np.s_[y - near : y + near + 1, x - near : x + near + 1]
  residual = np.square(padded[around] - painted[around]).sum() / energies[best]
  return residual, label, painted[margin:-margin, margin:-margin]


def _count_leftovers(image: np.ndarray, painted: np.ndarray) -> int:
  """Pixels that the painting gets wrong, outlines aside: a jagged one is no fault, a wrong one shows in a residual."""
  around = np.stack([np.roll(painted, shift, axis) for axis in (0, 1) for shift in (-1, 1)])
  is_flat = np.abs(around - painted).max((0, -1)) < FLAT
  is_wrong = np.square(image - painted).sum(-1) > LEFTOVER_DISTANCE**2
  return int((is_flat & is_wrong).sum())


def _size_of(radius: float) -> str | None:
  """The size whose radius is nearest, if near enough; `radius` is a fraction of the side."""
  name = min(SIZES, key=lambda size: abs(SIZES[size] - radius))
  return name if abs(radius / SIZES[name] - 1) <= RADIUS_TOLERANCE else None


# --- The judge ---


def read(image: np.ndarray) -> Scene | None:
  """The scene that a picture shows, or None if it shows none that the judge can tell.

  Args:
    image: uint8 [H, H, 3], H at least 32.

  Returns:
    A scene with one or two objects, the upper or left one first; its relation is None where the objects lie askew.

  Raises:
    ValueError: not such an array.
  """
  image = _to_grid(image)
  background = _read_background(image)
  if background is None:
    return None
  cores = _find_cores(image, background)
  if len(cores) not in (1, 2):
    return None
  # A core lacks its object's rim, so a box is one pixel too small on each side: the same for both, which is fair.
  boxes = [np.concatenate([pixels.min(0), pixels.max(0)]) for _, pixels in cores]
  territory = _territories(boxes)
  paint, shapes = _BACKGROUND_VALUES[background], []
  painted = np.broadcast_to(paint, image.shape)
  for index, ((color, _), box) in enumerate(zip(cores, boxes, strict=True)):
    alpha = _coverage_of(image, paint, _COLOR_VALUES[color], territory == index)
    residual, (shape, radius, x, y), template = _match(alpha, box)
    size = _size_of(radius / GRID)
    if residual > MAX_RESIDUAL or size is None:
      return None
    painted = painted + template[..., None] * (_COLOR_VALUES[color] - painted)
    shapes.append(Shape(SHAPES[int(shape)], _COLOR_NAMES[color], size, float(x) / GRID, float(y) / GRID))
  if _count_leftovers(image, painted) > MAX_LEFTOVERS:
    return None
  shapes.sort(key=lambda shape: shape.x + shape.y)
  relation = relation_of(*shapes) if len(shapes) == 2 else None
  return Scene(_BACKGROUND_NAMES[background], tuple(shapes), relation)


def satisfies(claims: Claims, image: np.ndarray) -> bool:
  """Whether everything that is claimed is seen in the picture uint8 [H, H, 3]; False if it is not readable."""
  scene = read(image)
  return scene is not None and claims.hold(scene)


def judge(captions: list[str], images: np.ndarray) -> np.ndarray:
  """Whether each picture shows what its caption says.

  Args:
    captions: B sentences of the language of `dalle_jax.data.shapes.captions`.
    images: uint8 [B, H, H, 3], H at least 32.

  Returns:
    bool [B].

  Raises:
    ValueError: a caption is not of the language, or the numbers of captions and pictures differ.
  """
  if len(captions) != len(images):
    raise ValueError(f'Given {len(captions)} captions and {len(images)} pictures; one caption for each is needed.')
  # Read all captions first: a bad one is told before the slow part.
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
