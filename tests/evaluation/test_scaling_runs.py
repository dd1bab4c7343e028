import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_jax.evaluation import scaling_runs
from dalle_jax.evaluation.scaling_runs import Run


def make(**changes):
  values = {
    'name': 'a', 'status': 'finished', 'seed': 0, 'config_hash': 'h', 'overrides': {'config.seed': '0'},
    'num_params': 120, 'num_non_embedding': 100, 'tokens': 1_000, 'flops': 6e5, 'loss': 2.0, 'unit': 'nats per token',
    'seconds': 1.5,
  }  # fmt: skip
  return Run(**{**values, **changes})


def test_runs_are_read_as_written_and_the_last_line_of_a_name_counts(tmp_path):
  file = tmp_path / scaling_runs.FILE_NAME
  first, second, again = make(), make(name='b', status='diverged', loss=None), make(loss=1.5)
  scaling_runs.write(file, [first, second, again])
  assert scaling_runs.read(file) == ([again, second], [])
  assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_damaged_lines_are_reported_and_ignored(tmp_path):
  file = tmp_path / scaling_runs.FILE_NAME
  scaling_runs.write(file, [make()])
  good = file.read_text()
  bad = [
    good[:40] + '\n', '[]\n', '{}\n', good.replace('1000', '"many"'), good.replace('finished', 'running'),
    good.replace('{"name": "a"', '{"name": ""'), good.replace('"seed": 0,', '"seed": true,'), '\n',
  ]  # fmt: skip
  file.write_bytes((''.join(bad) + good).encode() + b'\xff\xfe\n')
  runs, complaints = scaling_runs.read(file)
  assert runs == [make()]
  assert [complaint.split(' is damaged')[0] for complaint in complaints] == [
    f'results.jsonl, line {number}' for number in (1, 2, 3, 4, 5, 6, 7, 8, 10)
  ]
  with pytest.raises(ValueError, match='cannot be read'):
    scaling_runs.read(tmp_path / 'absent.jsonl')


def test_runs_without_a_usable_loss_are_reported_and_left_out(tmp_path):
  runs = [
    make(name='late', flops=9e9),
    make(name='gone', status='diverged', loss=None),
    make(name='nan', loss=float('nan')),
    make(name='negative', loss=-1.0),
    make(name='none', loss=None),
    make(name='empty', tokens=0),
    make(name='early'),
  ]
  selected, left_out = scaling_runs.usable(runs)
  assert [run.name for run in selected] == ['early', 'late']
  assert [line.split()[0] for line in left_out] == ['gone', 'nan', 'negative', 'none', 'empty']
  with pytest.raises(ValueError, match='measure different things'):
    scaling_runs.usable([make(), make(name='b', unit='nats per image token')])


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_no_run_beats_the_frontier_with_as_little_compute(points):
  flops, losses = np.array(points, float).T
  mask = scaling_runs.frontier(flops, losses)
  efficient = {point for point, is_marked in zip(points, mask, strict=True) if is_marked}
  assert efficient == {
    point for point in points if not any(o[0] <= point[0] and o[1] <= point[1] and o != point for o in points)
  }
  assert len(efficient) == mask.sum()  # one of several equal runs is marked


def test_a_run_is_immutable():
  with pytest.raises(dataclasses.FrozenInstanceError):
    make().loss = 1.0
