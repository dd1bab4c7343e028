"""Several hosts, as processes on this machine, against one host: agreement, training, checkpoints and failures."""

import json
import signal

import pytest
from processes import ROOT, Processes, free_port

from dalle_jax.training import checkpoint_checksums
from dalle_jax.training.metrics_log import read_metrics
from dalle_jax.training.signals import EXIT_INTERRUPTED


def test_hosts_agree_report_failures_and_train_like_one(tmp_path):
  (tmp_path / 'file').write_text('')
  port = free_port()
  script = str(ROOT / 'tests' / 'multi_device' / 'check_hosts.py')
  commands = [[script, str(index), '2', str(port), str(tmp_path)] for index in range(2)]
  statuses, outputs = Processes([*commands, [script, '0', '1', '0', str(tmp_path)]], tmp_path).finish()
  assert statuses == [0, 0, 0], '\n'.join(outputs)
  first, second, single = (json.loads(output.rpartition('RESULT')[2].splitlines()[0]) for output in outputs)
  for result in (first, second):
    assert result['agreed'] == result['shared'] == result['all well'] == ''
    assert 'host 1 differs from host 0 in\n    config.prior.num_layers: 64 -> 65' in result['other config']
    assert result['same data'] == ''
    message = 'The data are not the same on all hosts. Host 0: 0 records. Host 1: 1 records. Copy it.'
    assert result['other data'] == f'ValueError: {message}'
    assert "source files.train.py: 'changed 0' -> 'changed 1'" in result['other code']
    for name in ('other config', 'other code', 'not shared', 'not to be made'):
      assert result[name].startswith('ValueError: ')
    assert '--workdir' in result['not shared']
    assert 'host(s) 1 do not see' in result['not shared']
    assert 'cannot be made' in result['not to be made']
    assert result['stopped'].startswith('KeyboardInterrupt')
    assert (result['step'], result['kernel']) == (5, pytest.approx(single['kernel'], rel=1e-5))
  for result in (first, second, single):
    assert result['bad'] == {str(step): 3 * step for step in range(1, 6)}
  for result, step in ((first, 7), (second, 7), (single, 6)):  # several hosts know their sum a log line later
    assert '18 records of the last 6 batches cannot be read; at most 15' in result['too bad']
    assert f'The checkpoint of step {step} is in' in result['too bad']
  assert first['kernel'] == second['kernel']
  assert (first['mistake'], second['error']) == ('OSError: disk full', 'RuntimeError: a bug')
  assert second['mistake'] == 'ValueError: making the data: host 0 failed: disk full'
  message = 'making the data: host 1 failed: RuntimeError: a bug. The output of that host says more.'
  assert first['error'] == f'ValueError: {message}'
  for result in (first, second, single):  # the identity of a model and its checksums do not depend on the hosts
    assert result['params'] == result['fingerprint'] == '02329cf29b725e11'
    assert '(its contents have changed). Copy the directory again' in result['damaged']
  assert first['split'] > 30 and single['split'] == 0
  checkpoint_checksums.check_files(tmp_path / 'trained_by_2' / 'checkpoints' / '5')
  left = [file for name in ('run', 'host_0') for file in (tmp_path / name).iterdir()]
  assert left == []


def _train(workdir, num_hosts, *arguments, differing=()):
  """Starts the training command on several hosts; all but the first also get the arguments `differing`."""
  command = ['-m', 'dalle_jax.train', f'--workdir={workdir}', *arguments]
  outputs = workdir.parent / f'{workdir.name}_outputs'
  if num_hosts == 1:
    return Processes([command], outputs)
  command += ['--distributed', f'--coordinator=localhost:{free_port()}', f'--num_hosts={num_hosts}']
  return Processes([[*command, f'--host_index={i}', *(differing if i else ())] for i in range(num_hosts)], outputs)


def _losses(workdir, stage):
  """The training losses by step; if a step was repeated, the later one."""
  return {
    line['step']: [line[name] for name in sorted(line) if 'loss' in name]
    for line in read_metrics(workdir / stage / 'metrics.jsonl')
  }


def _assert_same_losses(workdir, expected, stage):
  actual = _losses(workdir, stage)
  assert sorted(actual) == sorted(expected)
  for step, losses in expected.items():
    # A loss is a sum of terms of about 10 that may cancel, so a relative bound alone is too strict near 0.
    assert actual[step] == pytest.approx(losses, rel=1e-4, abs=1e-5), step


@pytest.mark.slow
def test_hosts_train_like_one_host(tmp_path):
  arguments = (
    '--config=configs/quickstart.py:tiny',
    '--stop_after=prior',
    f'--config.data.data_dir={tmp_path / "data"}',
  )
  statuses, outputs = _train(tmp_path / 'one', 1, *arguments).finish()
  assert statuses == [0], outputs
  for number in (2, 4):
    workdir = tmp_path / f'{number}'
    statuses, outputs = _train(workdir, number, *arguments).finish()
    assert statuses == [0] * number, '\n'.join(outputs)
    assert f'{number} host(s)' in outputs[0]
    assert 'host(s)' not in outputs[1]
    for stage in ('dvae', 'prior'):
      expected = _losses(tmp_path / 'one', stage)
      assert len(expected) >= 3
      _assert_same_losses(workdir, expected, stage)
    assert (workdir / 'model' / 'bundle.json').exists()


# A model that compiles in seconds and trains long enough to be stopped midway.
TEXT = (
  '--config=configs/language.py:neural_ngram,tiny', '--config.tokenizer.kind=bytes', '--stop_after=sequence',
  '--config.sequence_training.num_steps=600', '--config.sequence_training.learning_rate=0.001',
  '--config.sequence_training.log_every=10', '--config.sequence_training.eval_every=300',
  '--config.sequence_training.checkpoint_every=50',
)  # fmt: skip


@pytest.mark.slow
def test_hosts_with_different_configurations_are_refused(tmp_path):
  hosts = _train(tmp_path / 'run', 2, *TEXT, differing=['--config.model.order=3'])
  statuses, outputs = hosts.finish()
  assert statuses == [2, 2], outputs
  for output in outputs:
    assert 'host 1 differs from host 0 in\n    config.model.order: 6 -> 3' in output
    assert 'Traceback' not in output
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_slurm_variables_suffice_to_join_the_hosts(tmp_path):
  command = ['-m', 'dalle_jax.train', f'--workdir={tmp_path / "run"}', *TEXT, '--stop_after=data', '--distributed']
  common = {'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2', 'SLURM_STEP_NUM_NODES': '1'}
  common['JAX_COORDINATOR_PORT'] = str(free_port())
  environments = [common | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)} for i in range(2)]
  statuses, outputs = Processes([command, command], tmp_path, environments).finish()
  assert statuses == [0, 0], outputs
  assert '2 host(s)' in outputs[0]


@pytest.mark.slow
def test_a_mistake_that_only_host_0_finds_ends_all_hosts(tmp_path):
  workdir = tmp_path / 'run'
  missing = '--config.data.path=' + str(tmp_path / 'missing')
  config = ('--config=configs/quickstart.py:tiny', '--config.data.source=folder')
  statuses, outputs = _train(workdir, 2, *config, missing).finish()
  assert statuses == [2, 2], outputs
  assert 'making the data: host 0 failed' in outputs[1]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  """Losses of one host that is not interrupted."""
  workdir = tmp_path_factory.mktemp('uninterrupted') / 'run'
  statuses, outputs = _train(workdir, 1, *TEXT).finish()
  assert statuses == [0], outputs
  return _losses(workdir, 'sequence')


def _wait_for_step(hosts, workdir, step):
  metrics = workdir / 'sequence' / 'metrics.jsonl'
  hosts.wait_for(lambda: metrics.exists() and any(line['step'] >= step for line in read_metrics(metrics)))


def _resume_and_compare(workdir, number, uninterrupted):
  statuses, outputs = _train(workdir, number, *TEXT).finish()
  assert statuses == [0] * number, '\n'.join(outputs)
  assert 'continuing from step' in outputs[0]
  _assert_same_losses(workdir, uninterrupted, 'sequence')


@pytest.mark.slow
@pytest.mark.parametrize(('before', 'after'), [(2, 1), (1, 4), (4, 2), (2, 2)])
def test_stopping_one_host_stops_all_and_the_same_command_resumes(tmp_path, uninterrupted, before, after):
  workdir = tmp_path / 'run'
  hosts = _train(workdir, before, *TEXT)
  _wait_for_step(hosts, workdir, 60)
  hosts.processes[-1].send_signal(signal.SIGTERM)
  statuses, outputs = hosts.finish()
  assert statuses == [EXIT_INTERRUPTED] * before, '\n'.join(outputs)
  assert 'Stopped on request at step' in outputs[0]
  _resume_and_compare(workdir, after, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_when_one_host_dies_the_others_end_and_the_same_command_resumes(tmp_path, uninterrupted, victim):
  workdir = tmp_path / 'run'
  hosts = _train(workdir, 2, *TEXT)
  _wait_for_step(hosts, workdir, 120)
  hosts.processes[victim].kill()
  statuses, outputs = hosts.finish(timeout=240)  # hosts notice a missing heartbeat after 100 s
  assert statuses[victim] == -signal.SIGKILL
  assert statuses[1 - victim] == -signal.SIGABRT, '\n'.join(outputs)  # from JAX's own client
  _resume_and_compare(workdir, 2, uninterrupted)
