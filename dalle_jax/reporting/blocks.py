"""Building blocks of HTML pages: sections, tables, figures, tokens and inline pictures."""

import base64
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from dalle_jax.reporting.sheets import encode_png


def format_number(value: float | None) -> str:
  """Format a number for readers: integers with thousands separators, other numbers with four significant digits.

  None, NaN and infinity become a dash.
  """
  if value is None or not math.isfinite(value):
    return '–'
  if value == int(value) or abs(value) >= 1000:
    return f'{value:,.0f}' if abs(value) < 1e15 else f'{value:.4g}'
  return f'{value:.4g}'


def section(title: str, blocks: Sequence[str], style: str = '') -> list[str]:
  """A heading with HTML blocks below it; empty if there are no blocks."""
  if not blocks:
    return []
  return ['<section>', f'<h2>{title}</h2>', f'<div class="{style}">', *blocks, '</div>', '</section>']


def score_tables(summary: Mapping[str, float | None]) -> list[str]:
  """Tables of scores, one for each prefix of the names, with standard errors and intervals beside their scores."""
  groups: dict[str, list[tuple[str, str]]] = {}
  beside = {name: _beside(name, summary) for name in summary}
  shown_beside = {other for others in beside.values() for other in others}
  for name, value in summary.items():
    if name in shown_beside:
      continue
    prefix, _, rest = name.rpartition('/')
    numbers = [_number(summary[other]) for other in beside[name]]
    cell = _number(value) + (f' ± {numbers[0]}' if len(numbers) == 1 else '')
    cell += f' ({numbers[0]} to {numbers[1]})' if len(numbers) == 2 else ''
    groups.setdefault(prefix, []).append((rest, cell))
  return [_table(prefix, rows) for prefix, rows in groups.items()]


def uncertainty_note(summary: Mapping[str, float | None]) -> str:
  """What ± and the intervals of `score_tables` are, in a sentence each; '' if there are none."""
  lengths = {len(_beside(name, summary)) for name in summary}
  sentences = {1: 'The number after ± is one standard error.', 2: 'Parentheses hold a 95% Wilson interval.'}
  return ' '.join(sentence for length, sentence in sentences.items() if length in lengths)


def _beside(name: str, summary: Mapping[str, float | None]) -> tuple[str, ...]:
  """The names of a score's standard error, or of the two ends of its interval; empty if it has neither."""
  group, slash, rest = name.partition('/')
  for suffixes in (('low', 'high'), ('stderr',)):
    for names in (
      tuple(f'{name}_{suffix}' for suffix in suffixes),
      tuple(f'{group}_{suffix}{slash}{rest}' for suffix in suffixes),
    ):
      if all(other in summary for other in names):
        return names
  return ()


def _number(value: float | None) -> str:
  exact = '' if value is None else repr(float(value))
  return f'<data value="{exact}" title="{exact}">{format_number(value)}</data>'


def config_details(config: Mapping[str, Any]) -> list[str]:
  """Collapsed tables of a nested mapping, one table for each group; empty if the mapping is empty."""
  groups: dict[str, list[tuple[str, str]]] = {}
  for prefix, name, value in _leaves(config):
    groups.setdefault(prefix, []).append((name, html.escape(str(value))))
  if not groups:
    return []
  tables = [_table(prefix, rows) for prefix, rows in groups.items()]
  return ['<details>', '<summary>All keys and values</summary>', '<div class="grid">', *tables, '</div></details>']


def _leaves(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str, Any]]:
  """Yield (dotted path of the group, key, value) for each value of a nested mapping."""
  for name, value in config.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f'{prefix}.{name}'.lstrip('.'))
    else:
      yield prefix, str(name), value


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
  """A table of rows (name, cell). The cells are HTML."""
  caption = f'<caption>{html.escape(title)}</caption>' if title else ''
  body = '\n'.join(f'<tr><th scope="row">{html.escape(name)}</th><td>{cell}</td></tr>' for name, cell in rows)
  return f'<div><table>{caption}\n{body}\n</table></div>'


def reason_table(rows: Sequence[tuple[str, str]]) -> str:
  """A table of rows (name, text)."""
  return _table('', [(name, html.escape(text)) for name, text in rows])


def drawing(title: str, svg: str) -> str:
  """A <figure> with an SVG element, which is inserted unescaped."""
  return f'<figure aria-label="{html.escape(title)}">{svg}</figure>'


def quotation(title: str, text: str) -> str:
  """A <figure> with a text under its title."""
  return f'<figure><h3>{html.escape(title)}</h3><pre>{html.escape(text)}</pre></figure>'


def paragraph(text: str, style: str = '') -> str:
  """A <p> of escaped text, with the class `style` unless it is ''."""
  return f'<p class="{style}">{html.escape(text)}</p>' if style else f'<p>{html.escape(text)}</p>'


def titled(title: str, content: str, style: str = '') -> str:
  """A <figure> of HTML under its title, with the class `style` unless it is ''."""
  attribute = f' class="{style}"' if style else ''
  return f'<figure{attribute}><h4>{html.escape(title)}</h4>{content}</figure>'


def token(text: str, depth: float, hint: str, below: str = '') -> str:
  """A token on an orange background.

  Args:
    text: the token as text.
    depth: strength of the colour, from 0 to 1.
    hint: the tooltip.
    below: a small line of text below the token; '' for none.
  """
  style = f'background:rgba(224, 112, 27, {0.75 * depth:.2f})'
  small = f'<small>{html.escape(below)}</small>' if below else ''
  return f'<span class="token" style="{style}" title="{html.escape(hint)}">{html.escape(text)}{small}</span>'


def inline_picture(picture: Image.Image, alt: str, style: str = '') -> str:
  """An <img> with the picture embedded as PNG, and with the class `style` unless it is ''."""
  data = base64.b64encode(encode_png(picture)).decode('ascii')
  attribute = f'class="{style}" ' if style else ''
  return (
    f'<img {attribute}src="data:image/png;base64,{data}" width="{picture.width}" height="{picture.height}" '
    f'alt="{html.escape(alt)}">'
  )
