import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax import bundle
from dalle_jax.config import Config
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.pipeline.draw import draw
from dalle_jax.pipeline.evaluate import Settings, evaluate

QUICKSTART = Path(__file__).parents[2] / 'configs' / 'quickstart.py'
CONFIG = Config.from_dict(runpy.run_path(str(QUICKSTART))['get_config']('tiny'))


def _save(path, tokenizer):
  rng = np.random.default_rng(0)
  boxed = jax.eval_shape(lambda: bundle.init_params(CONFIG, tokenizer.vocab_size if tokenizer else None))
  params = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), nn.unbox(boxed))
  bundle.save(path, CONFIG, tokenizer, params, 'data')
  return path


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return _save(tmp_path_factory.mktemp('run') / 'model', train_tokenizer(['a red circle', 'a blue square'], 300))


@pytest.fixture(scope='module')
def dvae_alone(tmp_path_factory):
  return _save(tmp_path_factory.mktemp('run') / 'model', None)


def test_figures_are_printed_and_written_and_do_not_depend_on_the_batch(model, capsys):
  result = evaluate(Settings(model=str(model), num_images=10, batch_size=4))
  printed = capsys.readouterr().out
  assert 'elbo/sampled/gain/nats' in printed and '+-' in printed
  assert json.loads((model.parent / 'evaluation_validation.json').read_text()) == result
  assert (result['num_images'], result['split'], result['seed']) == (10, 'validation', 0)
  figures = result['figures']
  assert figures['elbo/argmax/kl_uniform'] == pytest.approx(64 * np.log(256), rel=1e-5)
  again = evaluate(Settings(model=str(model), num_images=10, batch_size=7, out=str(model.parent / 'x' / 'y.json')))
  assert again['figures'] == pytest.approx(figures, rel=1e-5)
  assert (model.parent / 'x' / 'y.json').exists()


def test_a_dvae_alone_is_measured_with_the_uniform_prior_and_does_not_draw(dvae_alone, tmp_path):
  figures = evaluate(Settings(model=str(dvae_alone), num_images=4))['figures']
  assert 'elbo/sampled/uniform/bits_per_dim' in figures
  assert not [name for name in figures if '/prior/' in name or 'text' in name]
  with pytest.raises(ValueError, match=r'holds the dvae only.*config\.dvae\.pretrained'):
    draw(str(dvae_alone), ['a red circle'], out=str(tmp_path), num_images=1, seed=0)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'metrics': ('fid',)}, "--metrics is 'fid'.*elbo"),
    ({'metrics': ()}, '--metrics'),
    ({'num_images': -1}, '--num_images is -1'),
    ({'batch_size': 0}, '--batch_size is 0'),
    ({'seed': -1}, '--seed is -1'),
    ({'split': 'test'}, "no split 'test'; it has train, validation, held_out"),
    ({'model': 'nowhere'}, 'no model directory'),
  ],
)
def test_bad_settings_are_refused(model, changes, message):
  with pytest.raises(ValueError, match=message):
    evaluate(Settings(**{'model': str(model), **changes}))
  assert not (model.parent / 'evaluation_test.json').exists()
