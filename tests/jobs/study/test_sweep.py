import json
import math

import pytest

from dalle_jax.config import base_config
from dalle_jax.evaluation import scaling_runs
from dalle_jax.jobs.study import ladder, sweep
from dalle_jax.training.signals import EXIT_INTERRUPTED, Interrupted

SIZES = [{'config.model.embed_dim': '16'}, {'config.model.embed_dim': '32'}]


def text(overrides):
  config = base_config()
  config.task, config.data.source, config.tokenizer.kind = 'sequence', 'text', 'bytes'
  config.model.length, config.model.num_layers, config.sequence_training.batch_size = 32, 1, 4
  return changed(config, overrides)


def pictures(overrides):
  config = base_config()
  config.task = 'dvae'
  config.dvae.num_groups, config.dvae.hidden_size, config.dvae.image_vocab_size = 3, 8, 16
  return changed(config, overrides)


def changed(config, overrides):
  config.update_from_flattened_dict({key.removeprefix('config.'): int(value) for key, value in overrides.items()})
  return config


class Trainer:
  """Writes the files that training writes. `statuses` and `losses` are by a part of the run's name."""

  def __init__(self, statuses=(), losses=(), extra=0):
    self.statuses, self.losses, self.extra, self.names = dict(statuses), dict(losses), extra, []

  def __call__(self, rung, workdir, log):
    self.names.append(rung.name)
    log.write_text('starting\nerror: what went wrong\n')
    status = next((value for word, value in self.statuses.items() if word in rung.name), 0)
    if status:
      return status
    metric = ladder.MEASURES[rung.stage][0]
    loss = next((value for word, value in self.losses.items() if word in rung.name), 2.0)
    stage = workdir / rung.stage
    stage.mkdir(parents=True, exist_ok=True)
    steps = rung.training.num_steps
    lines = [{'step': steps - 1, 'time': 0, f'eval/{metric}': 9.0}, {'step': steps, 'time': 0, 'loss': 7.0}]
    lines += [{'step': steps + self.extra, 'time': 0, f'eval/{metric}': loss}]
    (stage / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (workdir / 'model').mkdir(exist_ok=True)
    (workdir / 'model' / 'bundle.json').write_text('{"text_vocab_size": 300}')
    (workdir / 'seconds.json').write_text(json.dumps({rung.stage: 1.5}))
    return 0


@pytest.fixture
def rungs():
  return ladder.build(text, SIZES, steps=[5, 10])


def test_runs_are_trained_once_and_cheapest_first(tmp_path, rungs, capsys):
  trainer = Trainer(losses={'embed_dim32-steps10': 1.5})
  runs = sweep.sweep(rungs, tmp_path, trainer)
  costs = [next(rung.cost()[2] for rung in rungs if rung.name == name) for name in trainer.names]
  assert costs == sorted(costs) and len(costs) == 4
  assert [run.name for run in runs] == [rung.name for rung in rungs]
  last = runs[-1]
  assert (last.loss, last.status, last.unit, last.seconds) == (1.5, 'finished', 'nats per token', 1.5)
  assert (last.tokens, last.seed) == (10 * 4 * 32, 0)
  assert (last.num_params, last.num_non_embedding, last.flops) == rungs[-1].cost(300)  # vocabulary of 300
  assert '[4/4] embed_dim32-steps10-seed0: 1.5000 nats per token' in capsys.readouterr().out
  again = Trainer()
  assert sweep.sweep(rungs, tmp_path, again) == runs and again.names == []


def test_runs_with_a_damaged_result_or_another_configuration_are_repeated(tmp_path, rungs, capsys):
  sweep.sweep(rungs, tmp_path, Trainer())
  file = tmp_path / scaling_runs.FILE_NAME
  first, *rest = file.read_text().splitlines(keepends=True)
  file.write_text(first[:50] + '\n' + ''.join(rest))
  trainer = Trainer()
  sweep.sweep(rungs, tmp_path, trainer)
  assert trainer.names == [json.loads(first)['name']]
  assert 'line 1 is damaged' in capsys.readouterr().out
  other = ladder.build(lambda overrides: text({**overrides, 'config.model.num_heads': '2'}), SIZES, steps=[5, 10])
  trainer = Trainer()
  sweep.sweep(other, tmp_path, trainer)
  assert len(trainer.names) == 4


def test_runs_that_diverge_or_fail_do_not_end_the_sweep(tmp_path, rungs, capsys):
  trainer = Trainer({'dim16-steps5': 1, 'dim32-steps5': 2}, {'dim16-steps10': None})
  runs = {run.name.removesuffix('-seed0'): run for run in sweep.sweep(rungs, tmp_path, trainer)}
  statuses = {name: run.status for name, run in runs.items()}
  assert statuses == {
    'embed_dim16-steps5': 'diverged', 'embed_dim16-steps10': 'diverged', 'embed_dim32-steps5': 'failed',
    'embed_dim32-steps10': 'finished',
  }  # fmt: skip
  assert [run.loss for run in runs.values()] == [None, None, None, 2.0]
  assert 'embed_dim32-steps5-seed0 failed with status 2: error: what went wrong' in capsys.readouterr().out
  again = Trainer()
  sweep.sweep(rungs, tmp_path, again)
  assert again.names == ['embed_dim32-steps5-seed0']  # a diverged run would diverge again


def test_a_run_without_a_loss_at_its_last_step_has_failed(tmp_path, rungs):
  runs = sweep.sweep(rungs[:1], tmp_path, Trainer(extra=1))
  assert (runs[0].status, runs[0].loss) == ('failed', None)


def test_an_interrupted_run_stops_the_sweep_and_keeps_its_results(tmp_path, rungs):
  with pytest.raises(Interrupted, match='the same command continues'):
    sweep.sweep(rungs, tmp_path, Trainer({'dim32-steps10': EXIT_INTERRUPTED}))
  runs, _ = scaling_runs.read(tmp_path / scaling_runs.FILE_NAME)
  assert len(runs) == 3


def test_bits_of_a_dvae_are_converted_to_nats(tmp_path):
  (rung,) = ladder.build(pictures, [{'config.dvae.hidden_size': '8'}], steps=[3])
  (run,) = sweep.sweep([rung], tmp_path, Trainer())
  assert run.loss == pytest.approx(2 * math.log(2)) and run.unit.startswith('nats per dimension')


def test_the_table_lists_the_runs_and_their_shares_of_the_compute(rungs):
  *lines, last = sweep.table(rungs).splitlines()
  assert len(lines) == 5 and lines[1].endswith('embed_dim16-steps5-seed0')
  assert last.startswith('4 runs, ')
  shares = [float(line.split('%')[0].split()[-1]) for line in lines[1:]]
  assert sum(shares) == pytest.approx(100, abs=0.3)


def test_the_remaining_time_has_a_fixed_part_and_a_part_proportional_to_compute():
  seconds = [10 + 2e-9 * cost for cost in (1e9, 4e9)]
  assert sweep._seconds_left([1e9, 4e9], seconds, [1e10, 2e10]) == pytest.approx(20 + 60)
  assert sweep._seconds_left([1e9], [10.0], []) == 0


def test_an_unusable_directory_is_refused(tmp_path, rungs):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'--out .* cannot be made or written to'):
    sweep.sweep(rungs, tmp_path / 'file' / 'under', Trainer())
