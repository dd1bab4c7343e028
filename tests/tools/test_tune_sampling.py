import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_models import PICTURES, caption_tokenizer, save_random

from dalle_jax.config import Config
from dalle_jax.jobs.study import tuning
from dalle_jax.sampling.draw_settings import DrawSettings

TOOL = Path(__file__).parents[2] / 'tools' / 'tune_sampling.py'
DATA = {'source': 'captioned_shapes', 'num_train': 8, 'num_validation': 40, 'num_held_out': 40}
CONFIG = Config.from_dict(
  {
    **PICTURES,
    'data': {'image_size': 32, **DATA},
    'dvae': {**PICTURES['dvae'], 'num_groups': 4},
    'tokenizer': {'vocab_size': 300, 'text_length': 64},
    'prior': {**PICTURES['prior'], 'caption_drop': 0.1},
  }
)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  path = save_random(tmp_path_factory.mktemp('run') / 'model', CONFIG, caption_tokenizer())
  return (path, *tuning.prepare(path, '', 2))


def test_the_grid_has_one_row_per_combination_of_settings(prepared):
  _, model, prompts = prepared
  assert [len(part.texts) for part in prompts] == [4, 4]
  rows = tuning.grid(model, prompts, {'guidance_scale': [1.0, 2.0], 'temperature': [1.0]}, 0, 8)
  assert [row['guidance_scale'] for row in rows] == [1.0, 2.0]
  assert rows[0]['validation/one_object'] == rows[0]['held_out/two_objects'] == 0  # untrained
  assert rows[0]['held_out/two_objects_low'] == 0 < 0.6 < rows[0]['held_out/two_objects_high']  # 0 of 2
  assert '0.0 (0.0 to 65.8)' in tuning.table(rows)
  lines = tuning.table(rows).splitlines()
  assert lines[0].split()[:3] == ['guidance_scale', 'temperature', 'validation/one_object'] and len(lines) == 3


def test_a_perfect_ranking_finds_a_correct_candidate_if_there_is_one(prepared, monkeypatch):
  _, model, prompts = prepared
  seen = {}

  def judge(texts, images):
    seen['right'] = np.random.default_rng(1).random(len(images)) < 0.4
    return seen['right']

  class Clairvoyant:
    info = {}  # noqa: RUF012

    def scores(self, prompts, images):
      return seen['right'].reshape(images.shape[:2]).astype(float)

  monkeypatch.setattr(tuning.judge, 'judge', judge)
  ranks = tuning.possible_ranks(model, Clairvoyant())
  assert ranks == ['reranker', 'likelihood', 'caption_likelihood']
  found = tuning.choosing(model, prompts, 4, ranks, DrawSettings(num_images=1, batch_size=16), Clairvoyant())
  assert found['counts'] == [1, 2, 4] and set(found['figures']) == {*ranks, 'any'}
  figures = found['figures']
  assert figures['reranker'] == figures['any'] != figures['likelihood']
  assert 'caption_likelihood' in tuning.choosing_table(found)
  drawn = []
  tuning.drawing(found, lambda series, *words, **more: drawn.append(series))
  assert len(drawn[0]) == 8 and all(len(x) == 3 for x, _ in drawn[0].values())


def test_a_model_of_other_data_may_have_seen_the_captions_which_is_said(prepared, monkeypatch, capsys):
  path, *_ = prepared
  monkeypatch.setattr(tuning, 'load', lambda path: None)
  for is_same in (False, True):
    monkeypatch.setattr(tuning.fingerprints, 'same', lambda stored, current, is_same=is_same: is_same)
    tuning.prepare(path, '', 2)
    assert ('it may have seen some of these captions' in capsys.readouterr().out) != is_same


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['candidates', '--temperature=1,2'], '--temperature takes one number'),
    (['grid', '--temperature=hot'], 'must be numbers'),
    (['grid', '--model=nowhere'], 'no model directory at'),
    (['candidates', '--most=0'], '--most is 0'),
  ],
)
def test_a_mistake_gives_one_line_on_stderr(prepared, tmp_path, arguments, message):
  action, *rest = arguments
  command = [sys.executable, str(TOOL), action, f'--model={prepared[0]}', f'--out={tmp_path / "a.json"}', *rest]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
  assert not (tmp_path / 'a.json').exists()


def test_the_grid_is_written_as_json(prepared, tmp_path):
  out = tmp_path / 'grid.json'
  command = [sys.executable, str(TOOL), 'grid', f'--model={prepared[0]}', '--num_prompts=1', f'--out={out}']
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert len(json.loads(out.read_text())['rows']) == 1
