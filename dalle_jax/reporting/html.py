"""The report of a run or an evaluation: one HTML file with scores, curves and pictures that works offline."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle_jax.files import write_whole
from dalle_jax.reporting.blocks import config_details, drawing, quotation, score_tables, section, uncertainty_note
from dalle_jax.reporting.page_style import STYLE, VERDICTS


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
  """Write a report that needs no other files, atomically. All text is escaped.

  Args:
    path: the file to write; missing directories are created.
    title: the heading of the page.
    summary: scores by name. Scores PREFIX/NAME with the same prefix share a table. The standard error NAME_stderr or
      GROUP_stderr/NAME, if there is one, is shown beside the score NAME or GROUP/NAME. So are the ends of an interval,
      whose names have `_low` and `_high` instead.
    config: the nested configuration or settings, shown in collapsed tables.
    curves: (title, SVG element) of each curve, as from `curves.curve_svg`. The SVG is inserted unescaped.
    notes: paragraphs under the heading.
    blocks: (title, HTML) of more sections, as from `gallery`, `likelihood_maps` and `codebook`. The HTML is inserted
      unescaped.
    texts: (title, text) of each text, such as samples of a text model.
  """
  note = uncertainty_note(summary)
  parts = [
    *section('Scores', score_tables(summary), 'grid'),
    *(line for name, block in blocks for line in section(html.escape(name), [block])),
    *section('Texts', [quotation(*text) for text in texts]),
    *section('Curves', [drawing(*curve) for curve in curves], 'grid curves'),
    *section('Configuration', config_details(config)),
  ]
  write_page(path, title=title, notes=[*notes, *([note] if note else [])], parts=parts)


def write_page(
  path: Path, *, title: str, notes: Sequence[str], parts: Sequence[str], style: str = '', script: str = ''
) -> None:
  """Write an HTML file atomically.

  Args:
    path: the file to write; missing directories are created.
    title: the heading of the page, as unescaped text.
    notes: paragraphs under the heading, as unescaped text.
    parts: the HTML of the page after the notes.
    style: CSS in addition to `STYLE`.
    script: JavaScript, which runs after the page has loaded.
  """
  head = [
    '<meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f'<title>{html.escape(title)}</title>',
    f'<style>{VERDICTS}{STYLE}{style}</style>',
  ]
  body = [f'<h1>{html.escape(title)}</h1>', *(f'<p>{html.escape(note)}</p>' for note in notes), *parts]
  body += [f'<script>{script}</script>'] if script else []
  lines = ['<!doctype html>', '<html lang="en">', '<head>', *head, '</head>', '<body>', *body, '</body>', '</html>', '']
  write_whole(Path(path), '\n'.join(lines).encode('utf-8', 'replace'))
