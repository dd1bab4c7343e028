"""Training curves: read a metrics.jsonl, and draw its series as SVG for a web page."""

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
MAX_POINTS = 400  # points drawn for one series: about one for each pixel
MAX_MARKERS = 40  # a series of at most this many points gets a dot at each
# Colours that are legible on white and on near-black.
COLOURS = ('#2f81d6', '#e0701b', '#2e9e62', '#a25ddc', '#c23b6b', '#7f7f2a', '#1aa3a3', '#8a5a44')
GRID = '#80808060'
# A placeholder for CSS's currentColor (the text colour of the page), which Matplotlib does not know. `_inline` replaces
# it in the finished SVG.
INK = '#010203'


def read_metrics(path: Path) -> dict[str, Series]:
  """Read the series of a metrics.jsonl: name -> (steps [N], values [N]), with ascending steps.

  A line cut off by a crash is skipped. A value that was not finite becomes NaN, a gap in the curve. If a step was
  logged twice, the later line counts.
  """
  points_by_name: dict[str, dict[int, float]] = {}
  for line in metrics_log.read_metrics(path):
    for name, value in line.items():
      if name not in ('step', 'time'):
        points_by_name.setdefault(name, {})[line['step']] = np.nan if value is None else value
  return {name: _series(points) for name, points in points_by_name.items()}


def curve_svg(
  series: Mapping[str, Series],
  title: str,
  y_label: str,
  log: bool = False,
  x_label: str = 'step',
  log_x: bool = False,
) -> str:
  """Draw curves as an inline <svg> that takes the text colour of the page.

  The output is reproducible. A series of more than MAX_POINTS points is drawn as means over groups of neighbours.

  Args:
    series: label -> (steps [N], values [N]). Empty series are left out. A single series gets no legend.
    title: the title, which is also the name for screen readers.
    y_label: the label of the y axis.
    log: whether the y axis is logarithmic; values of 0 or below become gaps.
    x_label: the label of the x axis.
    log_x: whether the x axis is logarithmic.
  """
  import matplotlib

  with matplotlib.rc_context(_settings(title)):
    return _inline(_draw(series, title, y_label, log, x_label, log_x), title)


def context_svg(series: Mapping[str, Series], title: str = CONTEXT_TITLE) -> str:
  """Draw bits per token over the context length.

  `evaluation.sequence_likelihood.by_context` measures the same tokens with each context length.
  `evaluation.token_likelihood.by_position` (with POSITION_TITLE) groups the tokens by the number of tokens before them.

  Args:
    series: label -> (context lengths [N], bits per token [N]). A length of 0 is drawn at 0.5 on the logarithmic axis.
    title: the title of the drawing.
  """
  placed = {label: (np.maximum(lengths, 0.5), bits) for label, (lengths, bits) in series.items()}
  return curve_svg(placed, title, 'bits per token', x_label='tokens given', log_x=True)


def bars_svg(bars: Mapping[str, Mapping[str, float]], title: str, y_label: str) -> str:
  """Draw groups of bars, each bar with its value on top, as an inline <svg>.

  Args:
    bars: group -> name of the bar -> height. A group may lack some of the bars.
    title: the title, which is also the name for screen readers.
    y_label: the label of the y axis.
  """
  import matplotlib

  with matplotlib.rc_context(_settings(title)):
    return _inline(_draw_bars(bars, title, y_label), title)


def has_data(series: Series) -> bool:
  """Whether the series has a finite value to draw."""
  return bool(np.isfinite(series[1]).any())


def _series(points: Mapping[int, float]) -> Series:
  steps = sorted(points)
  return np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64)


def _settings(title: str) -> dict['RcKeyType', Any]:
  # 'none' keeps text as text, which is small and selectable. The salt makes ids reproducible, and different for each
  # title.
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
    heights = {position: group[name] for position, group in enumerate(bars.values()) if name in group}
    places = [position + (i - (len(names) - 1) / 2) * width for position in heights]
    container = axes.bar(places, list(heights.values()), width, label=name, color=colour)
    axes.bar_label(container, fmt='%.2f', color=INK, fontsize=7)
  axes.set_xticks(range(len(bars)), list(bars))
  if len(names) > 1:
    axes.legend(frameon=False, labelcolor=INK, ncols=len(names))
  _style(axes, title, y_label, '')
  axes.grid(visible=False, axis='x')
  axes.margins(y=0.2)
  return _svg(figure)


def _svg(figure: Any) -> str:
  buffer = io.StringIO()
  metadata = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))  # None omits the entry
  figure.savefig(buffer, format='svg', transparent=True, metadata=metadata)
  return buffer.getvalue()


def _log_scale(set_scale: Callable[[str], None], axis: Any) -> None:
  from matplotlib.ticker import LogFormatter

  set_scale('log')
  for set_formatter in (axis.set_major_formatter, axis.set_minor_formatter):
    set_formatter(LogFormatter(minor_thresholds=(2, 0.5)))  # writes 100, not 10 with an exponent


def _style(axes, title: str, y_label: str, x_label: str) -> None:
  axes.set_title(title, color=INK, loc='left', parse_math=False)
  axes.set_xlabel(x_label, color=INK)
  axes.set_ylabel(y_label, color=INK, parse_math=False)
  axes.tick_params(which='both', colors=INK)
  axes.grid(color=GRID, linewidth=0.5)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(GRID)


def _thinned(series: Series) -> Series:
  """Reduce a series to at most MAX_POINTS points, each the mean of consecutive points."""
  steps, values = series
  width = -(-len(steps) // MAX_POINTS)
  if width <= 1:
    return steps, values
  starts = np.arange(0, len(steps), width)
  counts = np.diff(np.append(starts, len(steps)))
  return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _inline(svg: str, title: str) -> str:
  """Turn Matplotlib's SVG file into an <svg> element with an accessible name and the text colour of the page.

  Style rules and ids that could affect the rest of the page are removed.
  """
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<style.*?</style>', '', svg, flags=re.DOTALL)  # its rule would apply to the whole page
  svg = re.sub(r'<g id="[^"]*"', '<g', svg)  # ids such as figure_1, which nothing refers to and every drawing repeats
  attributes = f'role="img" aria-label="{html.escape(title)}" style="stroke-linejoin: round"'
  return svg.replace('<svg', f'<svg {attributes}', 1).replace(INK, 'currentColor').rstrip()
