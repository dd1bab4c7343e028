"""The report of a run or an evaluation: one HTML file with scores, curves and pictures that needs only a browser."""

import base64
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dalle_jax.files import write_whole
from dalle_jax.reporting import curves as curves_lib
from dalle_jax.reporting.sheets import RIGHT, WRONG, encode_png
from dalle_jax.training.metrics_log import FILE_NAME


class Curve(NamedTuple):
  """One drawing: which metrics of a stage's metrics.jsonl it shows, by the label in its legend."""

  title: str
  y_label: str
  series: dict[str, str]
  log: bool = False


COMMON = (
  Curve('learning rate', '', {'learning rate': 'learning_rate'}),
  Curve('speed', 'steps per second', {'speed': 'steps_per_second'}),
  Curve('utilisation', 'model FLOPs, share of the peak', {'utilisation': 'model_flops_utilisation'}),
  Curve(
    'where the time went', 'seconds between lines',
    {
      'steps': 'time/step', 'waiting for data': 'time/data', 'evaluation': 'time/evaluation',
      'checkpoints': 'time/checkpoint', 'pictures': 'time/pictures',
    },
  ),
)  # fmt: skip
# The metrics of the tasks (dalle_jax/training/tasks) and of the training loop.
_DVAE = (
  Curve('loss', 'nats per dimension', {'training objective (relaxed)': 'loss', 'evaluation (hard codes)': 'eval/loss'}),
  Curve(
    'negative log likelihood',
    'nats per dimension',
    {
      'training (relaxed)': 'nll_relaxed',
      'evaluation, relaxed codes': 'eval/nll_relaxed',
      'evaluation, hard codes': 'eval/nll_hard',
    },
  ),
  Curve('what hard codes cost more than relaxed ones', 'nats per dimension', {'evaluation': 'eval/relaxation_gap'}),
  Curve('PSNR', 'dB', {'relaxed codes': 'eval/psnr_relaxed', 'hard codes': 'eval/psnr_hard'}),
  Curve('bits per dimension', 'bits', {'evaluation': 'eval/bits_per_dim'}),
  Curve('temperature', '', {'temperature': 'temperature'}),
  Curve('KL divergence', 'nats per position', {'training': 'kl_per_position', 'evaluation': 'eval/kl_per_position'}),
  Curve('commitment loss', '', {'training': 'commitment'}),
  Curve(
    'codebook perplexity', 'codes', {'training': 'codebook_perplexity', 'evaluation': 'eval/codebook_perplexity'},
    log=True,
  ),
  Curve('codebook use', 'share of codes', {'training': 'codebook_use', 'evaluation': 'eval/codebook_use'}),
)  # fmt: skip
_TOKENS = (
  Curve('text', 'nats per token', {'training': 'text_nats_per_token', 'evaluation': 'eval/text_nats_per_token'}),
  Curve('image', 'nats per token', {'training': 'image_nats_per_token', 'evaluation': 'eval/image_nats_per_token'}),
)
_PRIOR = (*_TOKENS, Curve('image bits per dimension', 'bits', {'evaluation': 'eval/image_bits_per_dim'}))
_PRIOR_LOSS = Curve('loss', 'weighted nats per token', {'training': 'loss', 'evaluation': 'eval/loss'})
STAGES = {
  'dvae': ('dVAE', (*_DVAE, *COMMON)),
  'prior': ('Prior', (_PRIOR_LOSS, *_PRIOR, *COMMON)),
  'joint': ('dVAE and prior together', (*_DVAE, *_PRIOR, *COMMON)),
  'sequence': (
    'Model',
    (
      Curve('loss', 'nats per token', {'training': 'nats_per_token', 'evaluation': 'eval/nats_per_token'}),
      *_TOKENS,
      *COMMON,
    ),
  ),
}

_VERDICTS = f':root {{ --right: rgb{RIGHT}; --wrong: rgb{WRONG}; }}'  # as on sheets
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1c1e; --muted: #6a6a72; --line: #dcdce0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17181b; --ink: #e8e8ea; --muted: #a0a0a8; --line: #3a3b40; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; font-size: 1.3rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
h3 { margin: 0 0 .4rem; font-size: 1.05rem; }
.grid { display: grid; gap: 1.5rem 2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.curves { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
th, td { padding: .22rem 0; border-top: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 400; padding-right: 1rem; }
td { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 2rem; }
.grid figure { margin: 0; }
figcaption { color: var(--muted); margin-bottom: .6rem; white-space: pre-line; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; border-radius: 4px; border: 1px solid var(--line); }
svg { width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem; }
summary { cursor: pointer; margin-bottom: 1rem; }
.note { color: var(--muted); font-size: .88rem; margin: .2rem 0 0; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
.row figure { margin: 0; }
.row h4, .word h4 { margin: 0 0 .2rem; font-size: .95rem; overflow-wrap: anywhere; }
.pixelated, .map, .lit { image-rendering: pixelated; }
.map, .lit { border-radius: 0; }
.scale { width: 8rem; height: .7rem; border-radius: 0; vertical-align: middle; image-rendering: auto; }
.token { border-radius: 2px; }
.caption .token { display: inline-block; padding: .1rem .35rem; margin: 0 .15rem .3rem 0; line-height: 1.25;
  border-radius: 3px; text-align: center; }
.caption small { display: block; color: var(--muted); font-size: .72rem; }
.prompt { margin-bottom: 1.6rem; }
.tiles { gap: .6rem .7rem; margin-top: .4rem; }
.tile { width: 6rem; }
.tile img { display: block; width: 100%; }
.tile .pair { display: flex; gap: 2px; }
.tile .pair img { width: 50%; }
.tile figcaption { margin: .15rem 0 0; font-size: .82rem; line-height: 1.3; text-align: center;
  font-variant-numeric: tabular-nums; }
.large .tile { width: 8.3rem; }
.prompt details { margin-top: .5rem; }
.small .tile { width: 4rem; }
.small .tile figcaption { font-size: .74rem; }
.wide .tile { width: 11.5rem; }
.tile .right { border: 3px solid var(--right); }
.tile .wrong { border: 3px solid var(--wrong); }
.readings { margin-top: 1rem; }
.reading { width: 22rem; max-width: 100%; }
.reading .maps { display: flex; gap: .4rem; }
.reading .maps img { width: calc((100% - .8rem) / 3); }
.reading .caption { margin: .4rem 0 0; }
"""


def write_report(
  path: Path,
  *,
  title: str,
  summary: Mapping[str, float | None],
  config: Mapping[str, Any],
  curves: Sequence[tuple[str, str]],
  notes: Sequence[str],
  blocks: Sequence[tuple[str, str]] = (),
  texts: Sequence[tuple[str, str]] = (),
) -> None:
  """Writes one HTML file that holds everything it shows, as a whole or not at all. All text is escaped.

  Args:
    path: the file; missing directories are made.
    title: heading of the page.
    summary: scores by name; those called PREFIX/NAME are shown in one table for each prefix, with their standard errors
      where there is a NAME_stderr, or a GROUP_stderr/NAME to a GROUP/NAME.
    config: nested configuration or settings, shown folded.
    curves: (title, SVG element) as `curves.curve_svg` makes them: the SVG goes in as it is.
    notes: paragraphs under the heading.
    blocks: (title, HTML) of further sections, such as `gallery`, `likelihood` and `codebook` make: it goes in as it is.
    texts: (title, text), such as samples of a model of text.
  """
  parts = [
    *section('Scores', _score_tables(summary), 'grid'),
    *(line for name, block in blocks for line in section(html.escape(name), [block])),
    *section('Texts', [_quotation(*text) for text in texts]),
    *section('Curves', [drawing(*curve) for curve in curves], 'grid curves'),
    *section('Configuration', config_details(config)),
  ]
  write_page(path, title=title, notes=notes, parts=parts)


def write_page(
  path: Path, *, title: str, notes: Sequence[str], parts: Sequence[str], style: str = '', script: str = ''
) -> None:
  """Writes an HTML file as a whole or not at all.

  Args:
    path: the file; missing directories are made.
    title: heading of the page, escaped here.
    notes: paragraphs under the heading, escaped here.
    parts: HTML, which goes in as it is.
    style: CSS beyond `STYLE`.
    script: JavaScript, run when the page is there.
  """
  head = [
    '<meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f'<title>{html.escape(title)}</title>',
    f'<style>{_VERDICTS}{STYLE}{style}</style>',
  ]
  body = [f'<h1>{html.escape(title)}</h1>', *(f'<p>{html.escape(note)}</p>' for note in notes), *parts]
  body += [f'<script>{script}</script>'] if script else []
  lines = ['<!doctype html>', '<html lang="en">', '<head>', *head, '</head>', '<body>', *body, '</body>', '</html>', '']
  write_whole(Path(path), '\n'.join(lines).encode('utf-8', 'replace'))


def run_curves(workdir: Path) -> list[tuple[str, str]]:
  """(title, SVG) for every curve that WORKDIR/dvae/metrics.jsonl and WORKDIR/prior/metrics.jsonl have data for."""
  drawn = []
  for stage, (name, curves) in STAGES.items():
    path = Path(workdir) / stage / FILE_NAME
    found = curves_lib.read_metrics(path) if path.exists() else {}
    for curve in curves:
      series = {label: found[metric] for label, metric in curve.series.items() if metric in found}
      if any(map(curves_lib.has_data, series.values())):
        title = f'{name}: {curve.title}'
        drawn.append((title, curves_lib.curve_svg(series, title, curve.y_label, curve.log)))
  return drawn


def print_scores(workdir: Path, scores: Mapping[str, float], names: Sequence[str]) -> None:
  """Prints scores, and where the files of those names are."""
  width = max(len(name) for name in scores)
  for name, value in scores.items():
    print(f'{name:<{width}}  {value:.4g}')
  print()
  for name in names:
    print(workdir / name)
  print(flush=True)


def format_number(value: float | None) -> str:
  """A number as people read it: whole ones with thousands separators, others with four significant digits."""
  if value is None or not math.isfinite(value):
    return '–'
  if value == int(value) or abs(value) >= 1000:
    return f'{value:,.0f}' if abs(value) < 1e15 else f'{value:.4g}'
  return f'{value:.4g}'


def section(title: str, blocks: Sequence[str], style: str = '') -> list[str]:
  """A heading and what belongs under it; nothing where there is nothing."""
  if not blocks:
    return []
  return ['<section>', f'<h2>{title}</h2>', f'<div class="{style}">', *blocks, '</div>', '</section>']


def _score_tables(summary: Mapping[str, float | None]) -> list[str]:
  groups: dict[str, list[tuple[str, str]]] = {}
  errors = {name: error for name in summary for error in _error_names(name) if error in summary}
  for name, value in summary.items():
    if name in errors.values():
      continue
    prefix, _, rest = name.rpartition('/')
    cell = _number(value) + (f' ± {_number(summary[errors[name]])}' if name in errors else '')
    groups.setdefault(prefix, []).append((rest, cell))
  return [_table(prefix, rows) for prefix, rows in groups.items()]


def _error_names(name: str) -> tuple[str, str]:
  """What the standard error of a score may be called."""
  group, _, rest = name.partition('/')
  return f'{name}_stderr', f'{group}_stderr/{rest}'


def _number(value: float | None) -> str:
  exact = '' if value is None else repr(float(value))
  return f'<data value="{exact}" title="{exact}">{format_number(value)}</data>'


def config_details(config: Mapping[str, Any]) -> list[str]:
  """Tables of a nested mapping, one for each of its groups, folded away; nothing where it is empty."""
  groups: dict[str, list[tuple[str, str]]] = {}
  for prefix, name, value in _leaves(config):
    groups.setdefault(prefix, []).append((name, html.escape(str(value))))
  if not groups:
    return []
  tables = [_table(prefix, rows) for prefix, rows in groups.items()]
  return ['<details>', '<summary>Every key and its value</summary>', '<div class="grid">', *tables, '</div></details>']


def _leaves(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str, Any]]:
  """(dotted path of the group, key, value) of a nested mapping."""
  for name, value in config.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f'{prefix}.{name}'.lstrip('.'))
    else:
      yield prefix, str(name), value


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
  """Rows of (name, cell), the cell being HTML."""
  caption = f'<caption>{html.escape(title)}</caption>' if title else ''
  body = '\n'.join(f'<tr><th scope="row">{html.escape(name)}</th><td>{cell}</td></tr>' for name, cell in rows)
  return f'<div><table>{caption}\n{body}\n</table></div>'


def drawing(title: str, svg: str) -> str:
  """A <figure> of an SVG element, which goes in as it is."""
  return f'<figure aria-label="{html.escape(title)}">{svg}</figure>'


def _quotation(title: str, text: str) -> str:
  return f'<figure><h3>{html.escape(title)}</h3><pre>{html.escape(text)}</pre></figure>'


def paragraph(text: str, style: str = '') -> str:
  """A <p> of text, with a class where `style` names one."""
  return f'<p class="{style}">{html.escape(text)}</p>' if style else f'<p>{html.escape(text)}</p>'


def titled(title: str, content: str, style: str = '') -> str:
  """A <figure> of HTML under its title, with a class where `style` names one."""
  named = f' class="{style}"' if style else ''
  return f'<figure{named}><h4>{html.escape(title)}</h4>{content}</figure>'


def token(text: str, depth: float, hint: str, below: str = '') -> str:
  """A token on orange.

  Args:
    text: of the token.
    depth: of the colour, from 0 to 1.
    hint: text shown when the pointer rests on it.
    below: a small line beneath.
  """
  style = f'background:rgba(224, 112, 27, {0.75 * depth:.2f})'
  small = f'<small>{html.escape(below)}</small>' if below else ''
  return f'<span class="token" style="{style}" title="{html.escape(hint)}">{html.escape(text)}{small}</span>'


def inline_picture(picture: Image.Image, alt: str, style: str = '') -> str:
  """An <img> that holds its picture, with a class where `style` names one."""
  data = base64.b64encode(encode_png(picture)).decode('ascii')
  named = f'class="{style}" ' if style else ''
  return (
    f'<img {named}src="data:image/png;base64,{data}" width="{picture.width}" height="{picture.height}" '
    f'alt="{html.escape(alt)}">'
  )
