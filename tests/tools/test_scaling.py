import json
import pathlib
import subprocess
import sys

import pytest

from dalle_jax.evaluation import scaling_runs
from dalle_jax.evaluation.scaling_runs import Run

SCRIPT = pathlib.Path(__file__).parents[2] / 'tools' / 'scaling.py'
LADDER = (
  'sweep', '--config=configs/language.py:transformer,tiny', '--config.tokenizer.kind=bytes',
  '--config.sequence_training.eval_batches=2', '--axis=config.model.embed_dim=16,32',
)  # fmt: skip


def _run(*arguments):
  command = [sys.executable, str(SCRIPT), *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=SCRIPT.parents[1])


# Runs several subjects in turn, which share one fit of the laws.
IN_TURN = f"""
import json, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import scaling
from dalle_jax.evaluation import scaling_fits
fit_laws, kept = scaling_fits.fit_laws, {{}}
def once(table, *settings):
  kept[settings] = kept.get(settings) or fit_laws(table, *settings)
  return kept[settings]
scaling_fits.fit_laws = once
for arguments in json.loads(sys.argv[1]):
  scaling.flags.FLAGS.unparse_flags()
  scaling.flags.FLAGS(arguments)
  assert scaling.main(arguments[0], []) == 0
assert list(kept) == [(100, 0)]
"""


def _results(directory):
  def run(n, d):
    return Run(
      name=f'n{n}-d{d}', status='finished', seed=0, config_hash='h', overrides={}, num_params=2 * n,
      num_non_embedding=n, tokens=d, flops=6.0 * n * d, loss=1 + 20 / n**0.35 + 60 / d**0.3, unit='nats per token',
      seconds=1.0,
    )  # fmt: skip

  scaling_runs.write(
    directory / 'results.jsonl', [run(n, d) for n in (10**4, 10**5, 10**6) for d in (10**5, 10**6, 10**7, 10**8)]
  )
  return directory


@pytest.mark.slow
def test_a_repeated_sweep_trains_nothing_again(tmp_path):
  finished = _run(*LADDER, '--steps=2,4', f'--out={tmp_path}')
  assert finished.returncode == 0, finished.stderr
  assert '4 runs, ' in finished.stdout and '4 of 4 runs have a loss' in finished.stdout
  runs, complaints = scaling_runs.read(tmp_path / 'results.jsonl')
  assert complaints == [] and [run.status for run in runs] == ['finished'] * 4
  assert all(5 < run.loss < 6 and run.seconds > 0 for run in runs)  # ln 256 is 5.55
  again = _run(*LADDER, '--steps=2,4', f'--out={tmp_path}')
  assert '4 of 4 runs are done.' in again.stdout


def test_a_dry_run_prints_the_runs_without_training(tmp_path):
  finished = _run(*LADDER, '--tokens=1e5', f'--out={tmp_path / "out"}', '--dry_run')
  assert finished.returncode == 0, finished.stderr
  assert '2 runs, ' in finished.stdout and not (tmp_path / 'out').exists()


def test_fit_plot_and_plan_read_the_results(tmp_path):
  results = _results(tmp_path)
  turns = [
    ['fit', f'--results={results}'],
    ['plot', f'--results={results}', f'--out={tmp_path / "a.png"}'],
    ['plan', f'--results={results / "results.jsonl"}', '--compute=1e16'],
  ]
  command = [sys.executable, '-c', IN_TURN, json.dumps([[*turn, '--resamples=100'] for turn in turns])]
  finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPT.parents[1])
  assert finished.returncode == 0, finished.stderr
  kept = json.loads((tmp_path / 'fits.json').read_text())
  assert kept['fits']['L(N, D)']['parameters']['alpha_N']['value'] == pytest.approx(0.35, rel=1e-2)
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
  assert 'an extrapolation' in finished.stdout


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('fit',), 'needs --results'),
    (('plot', '--results=x'), 'needs --out'),
    (('plan', '--results=x'), 'needs --compute'),
    (('sweep', '--out=x'), 'needs --config'),
    ((*LADDER, '--tokens=many', '--out=x'), 'must list numbers'),
    ((*LADDER, '--steps=0', '--out=x'), 'must be above 0'),
    ((*LADDER, '--axis=config.model.size=1,2', '--steps=2', '--out=x'), 'Unknown configuration key'),
    (('climb',), "one of sweep, fit, plot, plan; given 'climb'"),
  ],
)
def test_a_mistake_gives_one_line_on_stderr(arguments, message):
  finished = _run(*arguments)
  assert finished.returncode != 0 and message in finished.stderr, finished.stderr
  assert finished.stderr.count('\n') == 1
