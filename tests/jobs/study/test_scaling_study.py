import json

import numpy as np
import pytest

from dalle_jax.evaluation import scaling_fits, scaling_runs
from dalle_jax.evaluation.scaling_runs import Run
from dalle_jax.jobs.study import scaling_study


def ladder(sizes=(1e4, 3e4, 1e5, 3e5, 1e6), budgets=(1e5, 4e5, 2e6, 1e7)):
  rng = np.random.default_rng(0)
  runs = []
  for n in sizes:
    for d in budgets:
      loss = (1.2 + 20 / n**0.35 + 60 / d**0.3) * np.exp(0.003 * rng.standard_normal())
      runs.append(
        Run(name=f'n{n:.0f}-d{d:.0f}', status='finished', seed=0, config_hash='h', overrides={}, num_params=int(2 * n),
            num_non_embedding=int(n), tokens=int(d), flops=6 * n * d, loss=float(loss), unit='nats per token',
            seconds=1.0)
      )  # fmt: skip
  return runs


@pytest.fixture
def results(tmp_path):
  scaling_runs.write(tmp_path / scaling_runs.FILE_NAME, ladder())
  return tmp_path


def test_results_load_from_directory_or_file_and_damaged_lines_are_reported(results):
  file = results / scaling_runs.FILE_NAME
  file.write_text(file.read_text() + '{"half\n')
  (table, complaints), (same, _) = scaling_study.load(results, 'non_embedding'), scaling_study.load(file, 'total')
  assert len(table.losses) == 20 and (same.params == 2 * table.params).all()
  assert len(complaints) == 1 and 'line 21 is damaged' in complaints[0]
  file.write_text('{"half\n')
  with pytest.raises(ValueError, match=r'holds no run with a loss.\n.*line 1 is damaged'):
    scaling_study.load(results, 'total')


def test_all_fits_are_reported_written_and_plotted(results):
  table, _ = scaling_study.load(results, 'non_embedding')
  fits, missing, test = scaling_study.fit(table, 0.9, 20, 0)
  text = scaling_study.report(fits, missing, test, table, 0.9)
  for words in (
    'L(N): 5 runs',
    'L(D): 4 runs',
    'L(C): ',
    'L(N, D): 20 runs',
    'alpha_D',
    'warning: only 5 runs',
    'Test: ',
  ):
    assert words in text
  scaling_study.write(results / scaling_study.FITS, fits, missing, test, 0.9)
  written = json.loads((results / scaling_study.FITS).read_text())
  assert written['fits']['L(N, D)']['num_runs'] == 20 and written['missing'] == []
  scaling_study.plot(table, fits, 0.9, results / 'a.svg')
  assert '>Loss and compute<' in (results / 'a.svg').read_text()
  panels = scaling_study.panels(table, fits, 0.9)
  assert [len(panel.series) for panel in panels] == [5, 4, 5] and all(panel.law for panel in panels)
  for bad, message in (('a.pdf', 'must end in'), (f'{scaling_runs.FILE_NAME}/a.svg', 'cannot be written')):
    with pytest.raises(ValueError, match=message):
      scaling_study.plot(table, fits, 0.9, results / bad)


def test_a_plan_says_how_far_it_extrapolates(results):
  table, _ = scaling_study.load(results, 'non_embedding')
  fits, _ = scaling_fits.fit_laws(table, num_samples=20)
  beyond = scaling_study.describe_plan(scaling_fits.plan(table, fits['L(N, D)'], 6e15, 0.9), table.unit, 0.9)
  assert '2.0 decades beyond the largest run' in beyond and 'warning: D lies' in beyond
  inside = scaling_study.describe_plan(scaling_fits.plan(table, fits['L(N, D)'], 1e12, 0.9), table.unit, 0.9)
  assert 'within the ladder' in inside and 'warning' not in inside


def test_a_ladder_too_small_for_the_test_says_so(tmp_path):
  scaling_runs.write(tmp_path / 'results.jsonl', ladder(sizes=(1e4, 1e5)))
  table, _ = scaling_study.load(tmp_path, 'non_embedding')
  fits, missing, test = scaling_study.fit(table, 0.9, 20, 0)
  assert test is None and 'L(N, D)' not in fits
  assert 'No test on the largest run' in scaling_study.report(fits, missing, test, table, 0.9)
