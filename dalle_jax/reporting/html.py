"""The report of a run or an evaluation: one HTML file with scores, curves and pictures that needs only a browser."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle_jax.files import write_whole
from dalle_jax.reporting.blocks import config_details, drawing, quotation, score_tables, section
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
    *section('Scores', score_tables(summary), 'grid'),
    *(line for name, block in blocks for line in section(html.escape(name), [block])),
    *section('Texts', [quotation(*text) for text in texts]),
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
    f'<style>{VERDICTS}{STYLE}{style}</style>',
  ]
  body = [f'<h1>{html.escape(title)}</h1>', *(f'<p>{html.escape(note)}</p>' for note in notes), *parts]
  body += [f'<script>{script}</script>'] if script else []
  lines = ['<!doctype html>', '<html lang="en">', '<head>', *head, '</head>', '<body>', *body, '</body>', '</html>', '']
  write_whole(Path(path), '\n'.join(lines).encode('utf-8', 'replace'))
