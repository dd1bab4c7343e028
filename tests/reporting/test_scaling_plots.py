import numpy as np
import pytest
from PIL import Image

from dalle_jax.reporting import scaling_plots
from dalle_jax.reporting.scaling_plots import Panel


def panels():
  x = np.geomspace(1e3, 1e6, 4)
  first = Panel('Loss and compute', 'training FLOPs C')
  first.series = {'N = 10': (x, 4 / x**0.05), 'N = 20': (x, 3.9 / x**0.05)}
  first.marked = (x[:2], 4 / x[:2] ** 0.05)
  losses = 3.8 / x**0.05
  first.law, first.label = (x, losses, 0.9 * losses, 1.1 * losses), 'E + A/C^0.050'
  second = Panel('Loss and size', 'parameters N')
  second.series = {'D = 5': (x, 1e3 / x)}  # over three decades of loss
  return [first, second]


def test_the_plot_has_all_labels_and_is_reproducible(tmp_path):
  for name in ('a.svg', 'b.svg'):
    scaling_plots.draw(panels(), 'nats per token', tmp_path / name)
  svg = (tmp_path / 'a.svg').read_text()
  for words in ('Loss and compute', 'parameters N', 'N = 20', 'E + A/C^0.050', 'nats per token'):
    assert f'>{words}<' in svg
  assert svg == (tmp_path / 'b.svg').read_text()


@pytest.mark.parametrize('name', ['a.png'])
def test_the_png_is_large_enough_to_read(tmp_path, name):
  scaling_plots.draw(panels(), 'nats per token', tmp_path / name)
  with Image.open(tmp_path / name) as image:
    assert image.width > 1_000 and image.height > 300
