"""Plots of a scaling ladder: loss against compute with its frontier, against size, and against data."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dalle_jax.files import write_whole
from dalle_jax.reporting.curves import COLOURS, GRID

if TYPE_CHECKING:
  from matplotlib.typing import RcKeyType

LAW, BAND = '#333333', '#33333322'
SIZE = (11.0, 3.8)  # inches
FORMATS = ('.svg', '.png')


class Panel:
  """The content of one plot: series of runs, marked runs, and a fitted law with its interval."""

  def __init__(self, title: str, x_label: str):
    self.title, self.x_label = title, x_label
    self.series: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # label -> (x [N], losses [N])
    self.marked: tuple[np.ndarray, np.ndarray] | None = None  # x [M] and losses [M] of the runs to circle
    # x [M], losses [M], and the lower and upper end of the losses' interval, [M] each
    self.law: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
    self.label = ''  # the label of the law in the legend


def draw(panels: list[Panel], unit: str, path: Path) -> None:
  """Draw the panels side by side and write them to a file. The same panels give the same bytes.

  Args:
    panels: the plots, from left to right.
    unit: the unit of the losses.
    path: the file to write; its suffix is one of FORMATS.
  """
  import matplotlib
  from matplotlib.figure import Figure

  settings: dict[RcKeyType, Any] = {
    'svg.hashsalt': 'scaling',
    'svg.fonttype': 'none',
    'font.size': 8.5,
    'font.family': 'sans-serif',
  }
  with matplotlib.rc_context(settings):
    figure = Figure(figsize=SIZE, layout='constrained', facecolor='white')
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
      _draw_panel(axes, panel, unit)
    buffer = io.BytesIO()
    kind = path.suffix[1:]
    metadata = {'Date': None, 'Creator': None} if kind == 'svg' else {'Software': None}
    figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
  write_whole(path, buffer.getvalue())


def _draw_panel(axes: Any, panel: Panel, unit: str) -> None:
  for i, (label, (x, losses)) in enumerate(panel.series.items()):
    axes.plot(x, losses, marker='.', linewidth=0.8, color=COLOURS[i % len(COLOURS)], label=label)
  if panel.law:
    x, losses, low, high = panel.law
    axes.fill_between(x, low, high, color=BAND, linewidth=0)
    axes.plot(x, losses, color=LAW, linestyle='--', linewidth=1.2, label=panel.label)
  if panel.marked:
    axes.plot(*panel.marked, linestyle='none', marker='o', markersize=7, markerfacecolor='none', color=LAW)
  _scale(axes)
  axes.set_title(panel.title, loc='left', parse_math=False)
  axes.set_xlabel(panel.x_label, parse_math=False)
  axes.set_ylabel(unit, parse_math=False)
  axes.grid(color=GRID, linewidth=0.5)
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, fontsize=7)


def _scale(axes: Any) -> None:
  """Make both axes logarithmic. A loss axis of less than a decade gets plain numbers as ticks."""
  from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

  axes.set_xscale('log')
  axes.set_yscale('log')
  low, high = axes.get_ylim()
  axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7) if high < 10 * low else (1,)))
  if high < 10 * low:
    axes.yaxis.set_major_formatter(ScalarFormatter())
  axes.yaxis.set_minor_formatter(NullFormatter())
