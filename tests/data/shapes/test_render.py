import numpy as np
import pytest

from dalle_jax.data.shapes import render as render_lib
from dalle_jax.data.shapes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, Shape

# Areas in units of the squared radius, from elementary geometry.
AREAS = {
  'circle': np.pi,
  'square': (2 * render_lib.SQUARE_SIDE) ** 2,
  'triangle': 2.0,
  'diamond': 2.0,
}


def single(shape, color='red', size='large', x=0.5, y=0.5, background='white'):
  return Scene(background, (Shape(shape, color, size, x, y),))


def covered(image, color, background):
  """The area in pixels that a shape covers, from the mixture of its colour and the background."""
  direction = np.subtract(COLORS[color], BACKGROUNDS[background]).astype(float)
  return ((image - np.array(BACKGROUNDS[background], float)) @ direction / (direction @ direction)).sum()


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', SIZES)
def test_areas_agree_with_geometry(shape, size):
  for side, tolerance in ((32, 0.06), (256, 0.01)):
    image = render_lib.render(single(shape, size=size, x=0.47, y=0.52), side)
    expected = AREAS[shape] * (SIZES[size] * side) ** 2
    assert covered(image, 'red', 'white') == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize('shape', SHAPES)
def test_anti_aliasing_agrees_with_supersampling(shape):
  scene = single(shape, x=0.48, y=0.53)
  radius, side, factor = SIZES['large'] * 32, 32, 16
  grid = (np.arange(side * factor) + 0.5) / factor
  dx, dy = grid[None, :] - 0.48 * side, grid[:, None] - 0.53 * side
  inside = {
    'circle': dx**2 + dy**2 < radius**2,
    'square': np.maximum(abs(dx), abs(dy)) < render_lib.SQUARE_SIDE * radius,
    'triangle': (dy < radius) & (2 * abs(dx) < dy + radius),
    'diamond': abs(dx) + abs(dy) < radius,
  }[shape]
  alpha = inside.reshape(side, factor, side, factor).mean((1, 3))[..., None]
  exact = np.array([255.0, 255, 255]) * (1 - alpha) + np.array(COLORS['red']) * alpha
  error = np.abs(render_lib.render(scene, 32) - exact)
  assert error.mean() < 0.8
  assert error.max() < 90  # at corners the signed distance does not determine the coverage


def test_orientation_position_and_colors_are_right():
  image = render_lib.render(single('triangle', 'blue', x=0.26, y=0.74, background='black'), 64)
  assert image.dtype == np.uint8 and image.shape == (64, 64, 3)
  assert tuple(image[47, 17]) == COLORS['blue']
  assert tuple(image[5, 60]) == BACKGROUNDS['black']
  blue = (image == COLORS['blue']).all(-1)
  assert blue[:47].sum() < blue[47:].sum()  # the triangle points up
  assert not blue[:, 32:].any() and not blue[:32].any()


def test_the_image_does_not_depend_on_the_order_of_separate_objects():
  first, second = Shape('circle', 'red', 'large', 0.25, 0.5), Shape('diamond', 'blue', 'small', 0.75, 0.5)
  image = render_lib.render(Scene('gray', (first, second), 'left of'), 32)
  np.testing.assert_array_equal(image, render_lib.render(Scene('gray', (second, first), 'right of'), 32))


def test_sizes_below_the_minimum_are_refused():
  with pytest.raises(ValueError, match='image_size is 8'):
    render_lib.render(single('circle'), 8)
  assert render_lib.render(single('circle'), 16).shape == (16, 16, 3)
