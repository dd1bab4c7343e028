"""Figures in documents: read their marks, and compare them with docs/measured.

docs/measured/README.md describes the files and the marks.
"""

import itertools
import json
import pathlib
import re
from typing import Any

NUMBER = re.compile(r'[-\u2212]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?')
MARK = re.compile(r'<!-- (figure|table): ([^>]*?) -->[ ]?')
KEY = re.compile(r'([\w-]+)\.([\w-]+)(?:\[([^\]]*)\]\[([^\]]*)\])?')


def read_tables(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The tables of all files of a folder, by FILE.TABLE.

  Raises:
    ValueError: a table lacks a key, or a row's length differs from that of the columns.
  """
  tables = {}
  for path in sorted(folder.glob('*.json')):
    content = json.loads(path.read_text(encoding='utf-8'))
    for name, table in content['tables'].items():
      if not all(table.get(key) for key in ('date', 'hardware', 'command', 'version')):
        raise ValueError(f'{path.name}: {name} must have date, hardware, command and version, none of them empty')
      if any(len(row) != len(table['columns']) for row in table['rows']):
        raise ValueError(f'{path.name}: a row of {name} does not have {len(table["columns"])} cells')
      tables[f'{path.stem}.{name}'] = table
  return tables


def problems(text: str, tables: dict[str, dict[str, Any]]) -> tuple[list[str], set[str]]:
  """What is wrong with the marked figures of a document, and the tables that its marks name."""
  wrong, used = [], set()
  for mark in MARK.finditer(text):
    kind, key = mark.groups()
    parsed = KEY.fullmatch(key)
    table = tables.get(f'{parsed[1]}.{parsed[2]}') if parsed else None
    if parsed is None or table is None:
      wrong.append(f'{key}: docs/measured has no such table')
      continue
    used.add(f'{parsed[1]}.{parsed[2]}')
    if kind == 'figure' and text[: mark.start()].endswith(('\n', '\n  ')):
      wrong.append(f'{key}: a mark at the start of a line would make the line HTML; break the line elsewhere')
    rest = text[mark.end() :]
    wrong += [f'{key}: {problem}' for problem in _checked(kind, parsed, table, rest)]
  return wrong, used


def _checked(kind: str, key: re.Match, table: dict[str, Any], rest: str) -> list[str]:
  if kind == 'table':
    return _check_table(table, rest.lstrip('\n'))
  rows = {_label(row): row for row in table['rows']}
  if key[3] not in rows or key[4] not in table['columns']:
    return ['the table has no such row or column']
  number = NUMBER.match(rest)
  value = rows[key[3]][table['columns'].index(key[4])]
  if not number:
    return [f'no number follows the mark, but {rest[:20]!r}']
  stored = value[0] if isinstance(value, list) else value
  scale = 1 if table.get('unit') == 'percent' else 100
  return [] if agrees(number[0], stored, scale) else [f'{number[0]} is written, {stored} was measured']


def _label(row: list) -> str:
  """The label of a row: its leading texts."""
  return ', '.join(itertools.takewhile(lambda value: isinstance(value, str), row))


def _check_table(table: dict[str, Any], text: str) -> list[str]:
  """Compare a Markdown table cell by cell; the header may have other words than the stored columns."""
  lines = []
  for line in text.splitlines():
    if not line.startswith('|'):
      break
    lines.append([cell.strip() for cell in line.strip().strip('|').split('|')])
  rows = [[MARK.sub('', cell) for cell in line] for line in lines[2:]]
  if not lines or len(lines[0]) != len(table['columns']) or len(rows) != len(table['rows']):
    return [f'{len(table["rows"])} rows of {len(table["columns"])} cells must follow the mark']
  wrong = []
  for shown, stored in zip(rows, table['rows'], strict=True):
    for cell, value, column in zip(shown, stored, table['columns'], strict=True):
      if not _cell_agrees(cell, value, 1 if table.get('unit') == 'percent' else 100):
        wrong.append(f'row {_label(stored)}, {column}: {cell!r} is written, {value!r} was measured')
  return wrong


def _cell_agrees(cell: str, value: Any, percent: int) -> bool:
  if value is None or isinstance(value, str):
    return cell == (value or '')
  values = value if isinstance(value, list) else [value]
  numbers = NUMBER.findall(cell)[: len(values)]
  pairs = zip(numbers, values, strict=False)
  return len(numbers) == len(values) and all(agrees(number, stored, percent) for number, stored in pairs)


def agrees(shown: str, stored: float, percent: int = 100) -> bool:
  """Whether a printed number is the stored one, rounded to the printed digits. '%' multiplies by `percent`."""
  digits = shown.rstrip('%').replace(',', '').replace('\u2212', '-')
  mantissa, _, exponent = digits.partition('e')
  decimals = len(mantissa.partition('.')[2]) - int(exponent or 0)
  exact = stored * (percent if shown.endswith('%') else 1)
  return abs(float(digits) - exact) <= 0.5 * 10.0**-decimals * (1 + 1e-6)


def unmarked(section: str) -> list[str]:
  """The percentages and decibels of a text that no mark precedes."""
  without = re.sub(MARK.pattern + NUMBER.pattern, '', section)
  return re.findall(r'\d[\d.,]*(?:%| dB)', without)
