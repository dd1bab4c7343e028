"""Training runs with other bottlenecks, a pretrained dVAE, attention patterns, and joint training."""

import dataclasses
import json
import os
import pathlib
import runpy
import signal

import jax
import numpy as np
import pytest
from web_page import Page

from dalle_jax import bundle
from dalle_jax.config import Config, MeshConfig
from dalle_jax.jobs.train import run
from dalle_jax.sharding import make_mesh
from dalle_jax.training.loop import Hook
from dalle_jax.training.signals import Interrupted

CONFIGS = pathlib.Path(__file__).parents[3] / 'configs'
FSQ = {'bottleneck': 'fsq', 'fsq_levels': (4, 4, 4, 4)}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


def _config(root, file='quickstart', variant='tiny', dvae=(), **changes):
  """A tiny configuration. All runs of this module share a data set."""
  values = runpy.run_path(str(CONFIGS / f'{file}.py'))['get_config'](variant).to_dict()
  values['data'] |= {'data_dir': str(root / f'data_{file}'), 'num_threads': 1}
  if file == 'quickstart':
    values['dvae'] |= {'num_groups': 2, 'patch_size': 2}  # the same grid of codes as with three groups
  values['dvae'] |= dict(dvae)
  for stage in ('dvae', 'prior', 'joint'):
    # AdamW's step compiles in a fraction of the time of Muon's. tests/jobs/train/test_run.py uses Muon.
    values[f'{stage}_training'] |= {'sheet_every': 0, 'optimizer': 'adamw'}
  return Config.from_dict(values | changes)


def _load(workdir, needs=('dvae', 'prior')):
  return bundle.load(workdir / 'model', make_mesh(MeshConfig()), needs=needs)


@pytest.fixture(scope='module')
def fsq(root):
  """A finished run that trains only a dVAE: work directory and scores."""
  workdir = root / 'fsq'
  scores = run.run(_config(root, dvae=FSQ, task='dvae'), str(workdir))
  return workdir, scores


def test_task_dvae_writes_a_dvae_with_scores_and_a_report(fsq):
  workdir, scores = fsq
  assert {'reconstruction/psnr', 'codebook/use', 'dvae/loss', 'seconds/dvae'} <= set(scores)
  assert not [name for name in scores if name.startswith('prior')]
  assert 'seconds/tokenizer' not in scores
  model = _load(workdir, needs=('dvae',))
  assert set(model.params) == {'dvae'} and model.tokenizer is None
  headings = Page((workdir / 'report.html').read_text()).text('h2')
  assert headings == ['Scores', 'Reconstructions', 'Codebook', 'Curves', 'Configuration']


def test_a_prior_is_trained_on_a_pretrained_dvae(fsq, root):
  dvae_workdir, workdir = fsq[0], root / 'on_fsq'
  config = _config(root, dvae={**FSQ, 'pretrained': str(dvae_workdir / 'model')})
  assert run.run(config, str(workdir), stop_after='prior') == {}
  assert not (workdir / 'dvae').exists()
  model = _load(workdir)
  pretrained = _load(dvae_workdir, needs=('dvae',)).params['dvae']
  jax.tree.map(np.testing.assert_array_equal, model.params['dvae'], pretrained)
  # A restart notices another dVAE at the same path.
  (workdir / 'pretrained.json').write_text(json.dumps({'params': 'another'}))
  with pytest.raises(ValueError, match=r'began with another dVAE than the one in config\.dvae\.pretrained'):
    run.run(config, str(workdir))


def test_a_dvae_of_another_shape_is_rejected_and_every_difference_listed(fsq, root):
  config = _config(root, dvae={'pretrained': str(fsq[0] / 'model'), 'hidden_size': 32})
  with pytest.raises(ValueError) as error:
    run.run(config, str(root / 'other'))
  for line in (
    'config.dvae.hidden_size: 32 -> 16', "config.dvae.bottleneck: 'gumbel' -> 'fsq'",
    'config.dvae.fsq_levels: () -> (4, 4, 4, 4)',
  ):  # fmt: skip
    assert line in str(error.value)
  with pytest.raises(ValueError, match=r'no model directory at nowhere \(config\.dvae\.pretrained\)'):
    run.run(_config(root, dvae={'pretrained': 'nowhere'}), str(root / 'other'))


def _assert_equal_dvaes(a, b):
  jax.tree.map(np.testing.assert_array_equal, _load(a, ('dvae',)).params, _load(b, ('dvae',)).params)


def _interrupted(config, workdir, monkeypatch, at):
  """Runs until SIGTERM arrives after step `at`, then runs the same command to the end."""
  original = run.Hook

  def with_signal(every, fn, last=False):
    def stop(state, step):
      if step == at:
        os.kill(os.getpid(), signal.SIGTERM)

    return Hook(1, stop)

  monkeypatch.setattr(run, 'Hook', with_signal)
  with pytest.raises(Interrupted, match=f'step {at} of'):
    run.run(config, str(workdir))
  monkeypatch.setattr(run, 'Hook', original)
  run.run(config, str(workdir), stop_after='prior')


@pytest.mark.slow
def test_an_interrupted_run_with_vector_quantisation_ends_with_the_same_dvae(root, monkeypatch):
  config = _config(root, dvae={'bottleneck': 'vq', 'restart_threshold': 0.9}, task='dvae')
  run.run(config, str(root / 'vq'), stop_after='prior')
  _interrupted(config, root / 'vq_interrupted', monkeypatch, at=5)
  _assert_equal_dvaes(root / 'vq', root / 'vq_interrupted')
  code = _load(root / 'vq', needs=('dvae',)).params['dvae']['code']
  assert set(code) == {'codebook', 'share', 'total', 'started'}


@pytest.mark.slow
def test_interrupted_joint_training_ends_with_the_same_dvae(root, monkeypatch):
  config = _config(root, task='joint')
  run.run(config, str(root / 'joint'), stop_after='prior')
  assert set(_load(root / 'joint').params) == {'dvae', 'prior'}
  _interrupted(config, root / 'joint_interrupted', monkeypatch, at=5)
  _assert_equal_dvaes(root / 'joint', root / 'joint_interrupted')


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['tiny', 'modern,tiny'])
def test_tiny_variants_of_the_papers_model_and_the_modern_model_run_from_end_to_end(root, variant):
  config = _config(root, 'dalle', variant)
  config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, num_prompts=2))
  scores = run.run(config, str(root / f'dalle_{variant}'))
  assert 0 <= scores['prompt_accuracy/validation'] <= 1
  assert scores['prior/image_nats_per_token'] < 1.1 * np.log(config.dvae.image_vocab_size)
