import json
import sys
import types

import pytest
import tensorboardX
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.config import LoggingConfig
from dalle_jax.training.metrics_log import (
  JsonlWriter,
  MultiWriter,
  TensorBoardWriter,
  WandbWriter,
  make_writer,
  read_metrics,
)


def test_json_lines_hold_step_time_and_values(tmp_path):
  writer = JsonlWriter(tmp_path / 'm.jsonl')
  writer.write(3, {'loss': 0.5, 'bad': float('nan')})
  (line,) = (tmp_path / 'm.jsonl').read_text().splitlines()  # flushed before closing
  writer.close()
  values = json.loads(line, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
  assert values.pop('time') > 1e9
  assert values == {'step': 3, 'loss': 0.5, 'bad': None}


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.integers(0, 30)), resume=st.integers(0, 30))
def test_resuming_drops_lines_of_later_steps(tmp_path_factory, steps, resume):
  path = tmp_path_factory.mktemp('m') / 'm.jsonl'
  for step in steps:
    writer = JsonlWriter(path, 10**6)
    writer.write(step, {})
    writer.close()
  JsonlWriter(path, resume).close()
  assert [values['step'] for values in read_metrics(path)] == [step for step in steps if step <= resume]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
  path = tmp_path / 'm.jsonl'
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
  writer = JsonlWriter(path, resume_step=5)
  writer.write(6, {'loss': 1.0})
  writer.close()
  assert [values['step'] for values in read_metrics(path)] == [1, 6]


def test_only_the_main_process_writes(tmp_path):
  writer = make_writer(tmp_path / 'run', LoggingConfig(), is_main_process=False)
  writer.write(1, {'loss': 1.0})
  writer.close()
  assert not (tmp_path / 'run').exists()


def test_tensorboard_files_are_written_without_tensorflow(tmp_path):
  writer = make_writer(tmp_path, LoggingConfig(), is_main_process=True, resume_step=2)
  writer.write(3, {'eval/loss': 1.5})
  writer.close()
  (events,) = (tmp_path / 'tensorboard').iterdir()
  assert b'eval/loss' in events.read_bytes()
  assert 'tensorflow' not in sys.modules
  assert [values['step'] for values in read_metrics(tmp_path / 'metrics.jsonl')] == [3]


def test_tensorboard_can_be_disabled(tmp_path):
  make_writer(tmp_path, LoggingConfig(tensorboard=False), is_main_process=True).close()
  assert sorted(path.name for path in tmp_path.iterdir()) == ['metrics.jsonl']


def test_missing_wandb_error_says_how_to_install_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ValueError, match=r"pip install 'dalle_jax\[wandb\]'"):
    make_writer(tmp_path, LoggingConfig(tensorboard=False, wandb_project='p'), is_main_process=True)


def test_wandb_resumes_the_same_run(tmp_path, monkeypatch):
  calls = []

  class Run:
    def log(self, values, step):
      calls.append((values, step))

    def finish(self):
      calls.append('finished')

  ids = []
  fake = types.SimpleNamespace(init=lambda **kwargs: ids.append((kwargs['id'], kwargs['resume'])) or Run())
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  for _ in range(2):
    writer = WandbWriter(tmp_path, 'p')
    writer.write(4, {'loss': 1.0})
    writer.close()
  assert ids[0] == ids[1] and ids[0][1] == 'allow'
  assert calls == [({'loss': 1.0}, 4), 'finished'] * 2


def test_multi_writer_writes_to_all_writers(tmp_path):
  paths = [tmp_path / 'a', tmp_path / 'b']
  writer = MultiWriter([JsonlWriter(path) for path in paths])
  writer.write(1, {'loss': 2.0})
  writer.close()
  assert [read_metrics(path)[0]['loss'] for path in paths] == [2.0, 2.0]


@pytest.mark.parametrize('step', [0, 40])
def test_tensorboard_hides_steps_that_will_be_repeated(tmp_path, monkeypatch, step):
  """Step 0: a run that ended before its first checkpoint starts from the beginning."""
  opened = []
  monkeypatch.setattr(tensorboardX, 'SummaryWriter', lambda directory, purge_step: opened.append(purge_step))
  TensorBoardWriter(tmp_path, step)
  assert opened == [step + 1]


@pytest.mark.parametrize(
  'line', [b'{}', b'5', b'null', b'[]', b'\xff\x00\x80', b'{"step": "1"}', b'{"step": 1, "loss": "x"}', b'[' * 99_999]
)
def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_overwritten(tmp_path, line):
  path = tmp_path / 'm.jsonl'
  content = b'{"step": 1, "loss": 2.0}\n' + line + b'\n{"step": 2, "loss": 1.0}\n'
  path.write_bytes(content)
  for read in (read_metrics, lambda path: JsonlWriter(path, 5)):
    with pytest.raises(ValueError, match=r'm\.jsonl, line 2 is damaged: .* Remove this line'):
      read(path)
  assert path.read_bytes() == content


@pytest.mark.parametrize('end', [b'{"step": 2, "lo', b'{', b'\0' * 50, b'\xff', b'{"step": 2, "a": "'])
def test_whatever_a_crash_left_of_the_last_line_is_dropped(tmp_path, end):
  path = tmp_path / 'm.jsonl'
  path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + end)
  assert [values['step'] for values in read_metrics(path)] == [1]
  JsonlWriter(path, 5).close()
  assert path.read_bytes() == b'{"step": 1, "loss": 2.0}\n'


def test_a_whole_last_line_without_a_line_break_is_kept(tmp_path):
  path = tmp_path / 'm.jsonl'
  path.write_bytes(b'{"step": 1}\r\n\n{"step": 2}')
  JsonlWriter(path, 5).close()
  assert [values['step'] for values in read_metrics(path)] == [1, 2]
