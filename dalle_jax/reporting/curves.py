"""Training curves: metrics.jsonl in, small vector drawings for a web page out."""

import html
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dalle_jax.training import metrics_log

if TYPE_CHECKING:
  from matplotlib.typing import RcKeyType

Series = tuple[np.ndarray, np.ndarray]  # steps int64 [N] and values float64 [N]

SIZE = (5.5, 3.0)  # inches
CONTEXT_TITLE = 'How far back the model looks'
POSITION_TITLE = 'Bits per token by the number of tokens before it'
MAX_POINTS = 400  # drawn of one series: about one for each pixel
MAX_MARKERS = 40  # points of a series up to which each gets a dot
# Legible on white and on near-black.
COLOURS = ('#2f81d6', '#e0701b', '#2e9e62', '#a25ddc', '#c23b6b', '#7f7f2a', '#1aa3a3', '#8a5a44')
GRID = '#80808060'
# Matplotlib does not know CSS's currentColor, the page's own text colour: this stands for it until the SVG is text.
INK = '#010203'


def read_metrics(path: Path) -> dict[str, Series]:
  """The series of a metrics.jsonl: name -> (steps [N], values [N]), by rising step.

  A line cut off by a crash is skipped, a value that was not finite reads as NaN (a gap in the curve), and where a
  step was logged twice the later line holds.
  """
  found: dict[str, dict[int, float]] = {}
  for line in metrics_log.read_metrics(path):
    for name, value in line.items():
      if name not in ('step', 'time'):
        found.setdefault(name, {})[line['step']] = np.nan if value is None else value
  return {name: _series(points) for name, points in found.items()}


def curve_svg(
  series: Mapping[str, Series],
  title: str,
  y_label: str,
  log: bool = False,
  x_label: str = 'step',
  log_x: bool = False,
) -> str:
  """Curves over steps, or something else, as an inline <svg> in the colours of the page around it.

  The same data give the same text.

  A series of more than MAX_POINTS points is drawn as the means of equally many neighbours.

  Args:
    series: label -> (steps [N], values [N]); empty series are left out, as is the legend of a single one.
    title: above the axes, and the drawing's name for screen readers.
    y_label: below the title, at the axis.
    log: logarithmic values; those not above 0 become gaps.
    x_label: what is counted from left to right.
    log_x: logarithmic in that too.
  """
  import matplotlib

  with matplotlib.rc_context(_settings(title)):
    return _inline(_draw(series, title, y_label, log, x_label, log_x), title)


def context_svg(series: Mapping[str, Series], title: str = CONTEXT_TITLE) -> str:
  """Bits per token over the number of tokens given.

  `evaluation.sequence_likelihood.by_context` measures them for the same tokens, and
  `evaluation.token_likelihood.by_position`, under POSITION_TITLE, for those that have so many before them.

  Args:
    series: label -> (tokens given [N], bits per token [N]). On a logarithmic axis no token given stands at a half.
    title: of the drawing.
  """
  placed = {label: (np.maximum(lengths, 0.5), bits) for label, (lengths, bits) in series.items()}
  return curve_svg(placed, title, 'bits per token', x_label='tokens given', log_x=True)


def bars_svg(bars: Mapping[str, Mapping[str, float]], title: str, y_label: str) -> str:
  """Groups of bars side by side, each with its value on top, as an inline <svg>.

  Args:
    bars: label of a group -> what a bar stands for -> its height. What a group lacks is left out.
    title: above the axes, and the drawing's name for screen readers.
    y_label: at the axis.
  """
  import matplotlib

  with matplotlib.rc_context(_settings(title)):
    return _inline(_draw_bars(bars, title, y_label), title)


def has_data(series: Series) -> bool:
  """Whether there is anything to draw."""
  return bool(np.isfinite(series[1]).any())


def _series(points: Mapping[int, float]) -> Series:
  steps = sorted(points)
  return np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64)


def _settings(title: str) -> dict['RcKeyType', Any]:
  # Text stays text (small, selectable); the salt keeps ids equal between runs and different between drawings.
  return {'svg.hashsalt': title, 'svg.fonttype': 'none', 'font.size': 9.0, 'font.family': 'sans-serif'}


def _draw(series: Mapping[str, Series], title: str, y_label: str, log: bool, x_label: str, log_x: bool) -> str:
  from matplotlib.figure import Figure

  figure = Figure(figsize=SIZE, layout='constrained')
  axes = figure.add_subplot()
  drawn = [(label, *_thinned(values)) for label, values in series.items() if has_data(values)]
  for (label, steps, values), colour in zip(drawn, COLOURS * len(drawn), strict=False):
    marker = '.' if len(steps) <= MAX_MARKERS else None
    axes.plot(steps, np.where(values > 0, values, np.nan) if log else values, label=label, color=colour, marker=marker)
  if log and drawn:
    _log_scale(axes.set_yscale, axes.yaxis)
  if log_x and drawn:
    _log_scale(axes.set_xscale, axes.xaxis)
  if len(drawn) > 1:
    axes.legend(frameon=False, labelcolor=INK)
  _style(axes, title, y_label, x_label)
  return _svg(figure)


def _draw_bars(bars: Mapping[str, Mapping[str, float]], title: str, y_label: str) -> str:
  from matplotlib.figure import Figure

  names = list(dict.fromkeys(name for group in bars.values() for name in group))
  figure = Figure(figsize=(max(SIZE[0], 0.5 + 0.4 * len(bars) * len(names)), SIZE[1]), layout='constrained')
  axes, width = figure.add_subplot(), 0.8 / len(names)
  for i, (name, colour) in enumerate(zip(names, COLOURS * len(names), strict=False)):
    found = [(at, group[name]) for at, group in enumerate(bars.values()) if name in group]
    places = [at + (i - (len(names) - 1) / 2) * width for at, _ in found]
    drawn = axes.bar(places, [height for _, height in found], width, label=name, color=colour)
    axes.bar_label(drawn, fmt='%.2f', color=INK, fontsize=7)
  axes.set_xticks(range(len(bars)), list(bars))
  if len(names) > 1:
    axes.legend(frameon=False, labelcolor=INK, ncols=len(names))
  _style(axes, title, y_label, '')
  axes.grid(visible=False, axis='x')
  axes.margins(y=0.2)
  return _svg(figure)


def _svg(figure: Any) -> str:
  buffer = io.StringIO()
  metadata = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))  # None: left out
  figure.savefig(buffer, format='svg', transparent=True, metadata=metadata)
  return buffer.getvalue()


def _log_scale(set_scale: Callable[[str], None], axis: Any) -> None:
  from matplotlib.ticker import LogFormatter

  set_scale('log')
  for set_formatter in (axis.set_major_formatter, axis.set_minor_formatter):
    set_formatter(LogFormatter(minor_thresholds=(2, 0.5)))  # 100 rather than 10 with a raised 2


def _style(axes, title: str, y_label: str, x_label: str) -> None:
  axes.set_title(title, color=INK, loc='left', parse_math=False)
  axes.set_xlabel(x_label, color=INK)
  axes.set_ylabel(y_label, color=INK, parse_math=False)
  axes.tick_params(which='both', colors=INK)
  axes.grid(color=GRID, linewidth=0.5)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(GRID)


def _thinned(series: Series) -> Series:
  """At most MAX_POINTS points, each the mean of a run of neighbours."""
  steps, values = series
  width = -(-len(steps) // MAX_POINTS)
  if width <= 1:
    return steps, values
  starts = np.arange(0, len(steps), width)
  counts = np.diff(np.append(starts, len(steps)))
  return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _inline(svg: str, title: str) -> str:
  """The <svg> element alone, named by its title, in the page's colours, without what would clash with the page."""
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<style.*?</style>', '', svg, flags=re.DOTALL)  # a rule for every element of the page
  svg = re.sub(r'<g id="[^"]*"', '<g', svg)  # figure_1 and so on: never referred to, and the same in each drawing
  attributes = f'role="img" aria-label="{html.escape(title)}" style="stroke-linejoin: round"'
  return svg.replace('<svg', f'<svg {attributes}', 1).replace(INK, 'currentColor').rstrip()
