import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_models import save_random
from soaking import mutations, subjects, worker
from soaking.results import OUTCOMES, Outcome, Results
from toy_subject import ToySubject

from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.config import Config
from dalle_jax.data.text.text_tokenizer import ByteTokenizer
from dalle_jax.jobs.compress import commands

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.mark.parametrize(
  'mutate', [mutations.mutate_bytes, lambda rng, data: mutations.mutate_json(rng, data.decode())]
)
def test_damage_depends_on_the_seed_alone_and_changes_nearly_every_input(mutate):
  data = json.dumps({'a': [1, 2, {'b': 'text'}], 'c': 3.5}).encode()
  texts = [mutate(np.random.default_rng([0, trial]), data) for trial in range(200)]
  assert texts == [mutate(np.random.default_rng([0, trial]), data) for trial in range(200)]
  assert sum(text in (data, data.decode() + '\n') for text in texts) < 20
  assert len(set(texts)) > 100


def test_png_checksums_are_made_right_again():
  data = bytearray(subjects._good_picture())
  data[20] ^= 1  # the width
  fixed = mutations.with_png_checksums(bytes(data))
  assert fixed != bytes(data) and mutations.with_png_checksums(fixed) == fixed


def test_trials_end_in_every_way_and_a_process_that_hangs_or_dies_is_replaced(monkeypatch, tmp_path):
  monkeypatch.setattr(worker, 'PATIENCE_S', 1.0)
  made = worker.Worker(ToySubject, tmp_path, 0)
  wanted, outcomes = {0, 1, 2, 3, 4}, {}
  for trial in range(100):
    end = int(np.random.default_rng([0, trial]).integers(2**31)) % 5
    if end in wanted:
      outcomes[end] = made.run(trial)
      wanted.discard(end)
  made.close()
  assert [outcomes[end].name for end in range(5)] == ['right', 'clean error', 'traceback', 'hang', 'traceback']
  assert (
    outcomes[1].detail == 'refused' and "KeyError: 'bug'" in outcomes[2].detail and 'status 3' in outcomes[4].detail
  )


def test_results_go_on_after_a_line_that_was_cut(tmp_path):
  file = tmp_path / 'results.jsonl'
  results = Results(file)
  for trial, name in enumerate(OUTCOMES):
    results.add('pictures', 0, trial, Outcome(name))
  results.add('kills', 0, 0, Outcome('right'), tries=7)
  with file.open('a') as handle:
    handle.write('{"kind": "pict')
  resumed = Results(file)
  assert resumed.rows == results.rows and file.read_text().endswith('}\n')
  assert resumed.missing('pictures', 0, 7) == [5, 6] and resumed.missing('pictures', 1, 2) == [0, 1]
  assert '| pictures | 5 | 1 | 1 | 1 | 1 | 1 |' in resumed.table()
  assert '| kills | 7 | 0 | 7 | 0 | 0 | 0 |' in resumed.table()
  assert [row['outcome'] for row in resumed.failures()] == ['silent wrong', 'traceback', 'hang']


@pytest.mark.parametrize('subject', [subjects.Pictures, subjects.TorchFiles])
def test_damaged_files_end_in_a_clean_error_or_right(subject, tmp_path):
  made = subject(tmp_path)
  for trial in range(30):
    (tmp_path / str(trial)).mkdir()
    outcome = worker._outcome(made, np.random.default_rng([1, trial]), tmp_path / str(trial))
    assert outcome.name in ('clean error', 'right'), outcome


@pytest.mark.slow
def test_the_tool_tries_every_kind_and_goes_on_where_it_stopped(tmp_path):
  command = [sys.executable, str(TOOLS / 'soak.py'), 'inputs', f'--out={tmp_path}']
  for count in (3, 5):
    done = subprocess.run([*command, f'--count={count}'], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in subjects.SUBJECTS:
      assert f'| {kind} | {count} |' in done.stdout


def test_an_undamaged_compressed_file_is_right(tmp_path, monkeypatch):
  model = {'length': 16, 'num_layers': 1, 'embed_dim': 8, 'num_heads': 2}
  values = {'task': 'sequence', 'data': {'source': 'text'}, 'tokenizer': {'kind': 'bytes'}, 'model': model}
  path = save_random(tmp_path / 'model', Config.from_dict(values), ByteTokenizer())
  source, file = tmp_path / 'corpus.txt', tmp_path / 'text.djxc'
  source.write_text('a red circle')
  commands.encode(path, str(source), str(file), CompressionSettings(verify=False))
  job = commands.TextJob(subjects.bundle.load(Path(path), subjects.sharding.one_device_mesh(), ('model',)))
  made = subjects.CompressedFiles.__new__(subjects.CompressedFiles)
  made._files = [(file.read_bytes(), job, source.read_bytes())] * 2
  monkeypatch.setattr(subjects, 'mutate_bytes', lambda rng, data: data)
  assert worker._outcome(made, np.random.default_rng(0), tmp_path) == Outcome('right')


def test_a_silent_fault_is_found(tmp_path, monkeypatch):
  monkeypatch.setattr(subjects.torch_file, 'read', lambda file: {'b': np.zeros(6)})
  made = subjects.TorchFiles(tmp_path)
  outcomes = [worker._outcome(made, np.random.default_rng([0, trial]), tmp_path).name for trial in range(10)]
  assert 'silent wrong' in outcomes


def test_file_operations_in_the_work_directory_are_counted_and_kill_at_the_one_asked_for(tmp_path):
  count = tmp_path.with_suffix('.count')

  def run(limit):
    script = (
      'import pathlib\n'
      'from soaking import killing\n'
      f'd = pathlib.Path({str(tmp_path)!r})\n'
      f'killing.watch_file_operations(d, {limit}, pathlib.Path({str(count)!r}))\n'
      "(d / 'a').write_text('a'); (d / 'a').read_text(); (d / 'a').rename(d / 'b'); (d / 'b').unlink()\n"
    )
    variables = os.environ | {'PYTHONPATH': f'{TOOLS}{os.pathsep}{TOOLS.parent}'}
    return subprocess.run([sys.executable, '-c', script], env=variables, check=False).returncode

  assert run(0) == 0 and count.read_text() == '3'
  assert run(2) == -9 and (tmp_path / 'a').exists()
