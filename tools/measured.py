"""Records figures of finished runs in docs/measured/NAME.json, and prints their table for a document.

    python tools/measured.py --runs=runs/seed0,runs/seed1,runs/seed2 --labels=0,1,2 \\
      --scores=reconstruction/psnr,prompt_accuracy/validation --out=docs/measured/quickstart.json --table=runs \\
      --command='python -m dalle_jax.train --config=configs/quickstart.py --config.seed=SEED --workdir=runs/seedSEED'

Each run is a work directory with a `scores.json`, or the JSON file of an evaluation. A row holds the scores of a run.
With several runs, the last row is the median of each column, unless --nomedian is given. docs/measured/README.md says
how documents use the file.
"""

import datetime
import importlib.metadata
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

from absl import flags

import dalle_jax
from dalle_jax import flags as doors
from dalle_jax.files import read_json_object, write_whole

_RUNS = flags.DEFINE_list('runs', [], 'Work directories, or JSON files of evaluations.')
_LABELS = flags.DEFINE_list('labels', [], 'The label of each row. By default, the names of the runs.')
_SCORES = flags.DEFINE_list('scores', [], 'Names of scores, one for each column.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write. Other tables in the file stay.')
_TABLE = flags.DEFINE_string('table', 'runs', 'The name of the table in the file.')
_MEDIAN = flags.DEFINE_bool('median', True, 'Whether the last row of several runs is the median of each column.')
_COMMAND = flags.DEFINE_string('command', '', 'The command that measured the table. Default: that of an earlier table.')
_HARDWARE = flags.DEFINE_string('hardware', '', 'What measured the table. Default: as in an earlier table.')


def scores_of(path: Path) -> dict[str, Any]:
  """The scores of a run by name: numbers, or in evaluations lists of a value and its standard error or interval.

  Args:
    path: a work directory with a scores.json, or the JSON file of an evaluation.

  Raises:
    ValueError: there is no such file, or it holds no scores.
  """
  file = path / 'scores.json' if path.is_dir() else path
  content = read_json_object(file, 'Give finished work directories or files of evaluations (--runs).')
  figures = content.get('figures')
  if isinstance(figures, dict):
    return {name: _cell(figure) for name, figure in figures.items() if isinstance(figure, dict)}
  return content


def _cell(figure: dict[str, Any]) -> Any:
  """A figure of an evaluation: [value, low, high], [value, standard error], or the value alone."""
  value, error = figure.get('value'), figure.get('stderr')
  if figure.get('interval'):
    return [value, *figure['interval']]
  return value if error is None else [value, error]


def table_of(runs: list[Path], labels: list[str], names: list[str], with_median: bool = True) -> dict[str, Any]:
  """The table of a file in docs/measured: 'columns' and 'rows', the last one the median if there are several runs.

  Raises:
    ValueError: a run cannot be read, or has no such score or no finite number, or the labels do not fit the runs.
  """
  labels = labels or [run.name for run in runs]
  if not runs or not names or len(labels) != len(runs):
    raise ValueError(
      f'--runs has {len(runs)} runs, --labels {len(labels)} labels and --scores {len(names)} names; give at least one '
      'run and one name, and a label for each run.'
    )
  rows: list[list[Any]] = []
  for label, run in zip(labels, runs, strict=True):
    scores = scores_of(run)
    missing = [name for name in names if name not in scores]
    if missing:
      raise ValueError(f'{run} (--runs) has no score {", ".join(missing)} (--scores); it has {", ".join(scores)}.')
    numberless = [name for name in names if not _is_finite(scores[name])]
    if numberless:
      raise ValueError(
        f'{run} (--runs) has no finite number for {", ".join(numberless)} (--scores); leave this score out.'
      )
    rows.append([label, *(scores[name] for name in names)])
  if len(rows) > 1 and with_median:
    columns = list(zip(*rows, strict=True))[1:]
    rows.append(['median', *(statistics.median(map(_value, column)) for column in columns)])
  return {'columns': ['run', *names], 'rows': rows}


def as_json(content: dict[str, Any]) -> str:
  """The text of a file in docs/measured, with the columns and each row of a table on a line."""
  lists: list[str] = []

  def placeholder(values: list) -> str:
    lists.append(json.dumps(values, ensure_ascii=False))
    return f'<{len(lists) - 1}>'

  tables = {
    name: {**table, 'columns': placeholder(table['columns']), 'rows': [placeholder(row) for row in table['rows']]}
    for name, table in content['tables'].items()
  }
  text = json.dumps({**content, 'tables': tables}, indent=1, ensure_ascii=False)
  return re.sub(r'"<(\d+)>"', lambda match: lists[int(match[1])], text) + '\n'


def markdown(table: dict[str, Any]) -> str:
  """A table as Markdown, with four significant digits. Uncertainties are rounded to two."""
  lines = [table['columns'], ['---'] * len(table['columns'])]
  lines += [[row[0], *map(_shown, row[1:])] for row in table['rows']]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines).replace('| --- ', '|---').replace('--- |', '---|')


def _numbers(cell: Any) -> list[Any]:
  return cell if isinstance(cell, list) else [cell]


def _is_finite(cell: Any) -> bool:
  """Whether a cell is a finite number, or a list of finite numbers that is not empty."""
  numbers = _numbers(cell)
  return bool(numbers) and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)


def _value(cell: float | list[float]) -> float:
  return _numbers(cell)[0]


def _shown(cell: float | list[float]) -> str:
  if not isinstance(cell, list):
    return f'{cell:.4g}'
  value, *uncertainty = cell
  return f'{value:.4g} +- {uncertainty[0]:.2g}' if len(cell) == 2 else '{:.4g} ({:.4g} to {:.4g})'.format(*cell)


def main(argv: list[str]) -> int:
  del argv
  if not _OUT.value:
    raise ValueError('--out is missing; give the file to write, such as docs/measured/NAME.json.')
  out = Path(_OUT.value)
  table = table_of([Path(run) for run in _RUNS.value], _LABELS.value, _SCORES.value, _MEDIAN.value)
  tables = read_json_object(out).get('tables', {}) if out.exists() else {}
  old = tables.get(_TABLE.value, {})
  facts = {
    'date': datetime.date.today().isoformat(),
    'hardware': _HARDWARE.value or old.get('hardware', ''),
    'command': _COMMAND.value or old.get('command', ''),
    'version': f'dalle_jax {dalle_jax.__version__}, jax {importlib.metadata.version("jax")}',
  }
  write_whole(out, as_json({'tables': {**tables, _TABLE.value: {**facts, **table}}}).encode())
  print(markdown(table))
  return 0


if __name__ == '__main__':
  doors.run(main)
