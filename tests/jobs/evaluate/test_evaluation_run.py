import dataclasses
import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from random_models import PICTURES, caption_tokenizer, save_random
from web_page import Page

from dalle_jax import bundle
from dalle_jax.config import Config
from dalle_jax.data import registry
from dalle_jax.data.text.tokenizer import train_tokenizer
from dalle_jax.jobs import examples
from dalle_jax.jobs.draw.generation import draw
from dalle_jax.jobs.evaluate.evaluation_run import evaluate
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.ranker import Ranker
from dalle_jax.sampling.draw_settings import DrawSettings

QUICKSTART = Path(__file__).parents[3] / 'configs' / 'quickstart.py'
RERANKER = {
  'embed_dim': 8, 'patch_size': 16, 'image_width': 8, 'image_num_layers': 1, 'image_num_heads': 2, 'text_width': 8,
  'text_num_layers': 1, 'text_num_heads': 2,
}  # fmt: skip
VALUES = runpy.run_path(str(QUICKSTART))['get_config']('tiny').to_dict()
VALUES['dvae'] |= {'num_groups': 2, 'patch_size': 2}  # the same grid of codes as with three groups
CONFIG = Config.from_dict(VALUES)


def _save(path, tokenizer):
  rng = np.random.default_rng(0)
  boxed = jax.eval_shape(lambda: bundle.init_params(CONFIG, tokenizer.vocab_size if tokenizer else None))
  params = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), nn.unbox(boxed))
  bundle.save(path, CONFIG, tokenizer, params, 'data')
  return path


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  root = tmp_path_factory.mktemp('run')
  captions = examples.captions(registry.prepare(CONFIG.data, root / 'data'), 'train')
  return _save(root / 'model', train_tokenizer(captions, CONFIG.tokenizer.vocab_size))


@pytest.fixture(scope='module')
def dvae_alone(tmp_path_factory):
  return _save(tmp_path_factory.mktemp('run') / 'model', None)


@pytest.fixture(scope='module')
def reranker(tmp_path_factory):
  config = Config.from_dict({**PICTURES, 'task': 'reranker', 'data': {'image_size': 32}, 'reranker': RERANKER})
  return save_random(tmp_path_factory.mktemp('reranker') / 'model', config, caption_tokenizer())


FLAGS = {'num_images': 12, 'images_per_prompt': 3, 'diversity_prompts': 4, 'blur_radii': (2.0, 0.0), 'batch_size': 8}


@pytest.fixture(scope='module')
def evaluation(model, reranker):
  """The settings and the result of all metrics except elbo and inception_score."""
  names = ('reconstruction', 'codebook', 'likelihood', 'fid', 'kid', 'precision_recall', 'blurred_fid', 'clip_score',
           'prompt_accuracy', 'diversity')  # fmt: skip
  settings = EvaluationSettings(model=str(model), metrics=names, features='reranker', reranker=reranker, **FLAGS)
  return settings, evaluate(settings)


def test_the_page_shows_what_was_measured(model, evaluation):
  page = Page((model.parent / 'evaluation_validation.html').read_text())
  titles = page.text('h2')
  assert titles[:3] == ['Scores', 'Reconstructions', 'Codebook']
  assert titles[3:] == ['Samples: validation', 'Likelihood of tokens', 'Curves', 'Configuration']
  psnr = evaluation[1]['figures']['reconstruction/psnr']['value']
  assert repr(psnr) in [element.attrs['value'] for element in page.of('data')]


def test_sampling_flags_override_the_model_settings(evaluation, tmp_path):
  settings, result = evaluation
  changes = {'metrics': ('diversity',), 'features': None, 'temperature': 0.0, 'out': str(tmp_path / 'a.json')}
  other = evaluate(dataclasses.replace(settings, **changes))
  assert other['sampling']['temperature'] == 0 and result['sampling']['temperature'] == CONFIG.sampling.temperature
  assert other['figures']['diversity/distinct_grids']['value'] == 1


def test_elbo_is_printed_and_written_and_does_not_depend_on_the_batch_size(model, capsys):
  result = evaluate(EvaluationSettings(model=str(model), num_images=10, batch_size=4), overwrite=True)
  printed = capsys.readouterr().out
  assert 'elbo/sampled/gain/nats' in printed and '+-' in printed
  assert json.loads((model.parent / 'evaluation_validation.json').read_text()) == result
  assert (result['num_images'], result['split'], result['seed']) == (10, 'validation', 0)
  figures = result['figures']
  assert figures['elbo/argmax/kl_uniform']['value'] == pytest.approx(64 * np.log(256), rel=1e-5)
  again = evaluate(
    EvaluationSettings(model=str(model), num_images=10, batch_size=7, out=str(model.parent / 'x' / 'y.json'))
  )
  for name, figure in figures.items():
    assert again['figures'][name] == pytest.approx(figure, rel=1e-5, abs=1e-9)
  page = model.parent / 'x' / 'y.html'
  assert (model.parent / 'x' / 'y.json').exists() and page.exists()
  (model.parent / 'x' / 'y.json').unlink()
  with pytest.raises(ValueError, match=r'y\.html exists; give another name, or --overwrite'):
    evaluate(EvaluationSettings(model=str(model), num_images=10, out=str(page.with_suffix('.json'))))


def test_every_metric_gives_its_figures_with_counts(evaluation):
  figures = evaluation[1]['figures']
  counts = {name: figure['count'] for name, figure in figures.items()}
  assert counts == {
    'reconstruction/psnr': 12, 'reconstruction/ssim': 12, 'rfid/reranker': 12,
    'codebook/perplexity': 12 * 64, 'codebook/use': 12 * 64,
    **{f'likelihood/{name}': 12 for name in (
      'bits_per_image_token', 'nats_per_image_token', 'nats_per_image', 'bits_per_image', 'bits_per_dim',
      'bits_per_text_token', 'nats_per_text_token', 'nats_per_caption',
    )},
    'fid/reranker': 12, 'kid/reranker': 12, 'precision/reranker': 12, 'recall/reranker': 12,
    'blurred_fid/reranker/2': 12, 'blurred_fid/reranker/0': 12,
    **{f'clip_score/{of}/{name}': 12 for of in ('drawn', 'real') for name in ('cosine', 'score')},
    'prompt_accuracy': 12, 'prompt_accuracy/one_object': counts['prompt_accuracy/one_object'],
    'prompt_accuracy/two_objects': 12 - counts['prompt_accuracy/one_object'],
    'diversity/pixels': 4, 'diversity/distinct_grids': 4, 'diversity/reranker': 4, 'diversity/reranker_vendi': 4,
  }  # fmt: skip
  values = {name: figure['value'] for name, figure in figures.items()}
  assert values['blurred_fid/reranker/0'] == values['fid/reranker'] > 0
  assert values['clip_score/real/score'] >= 100 * values['clip_score/real/cosine'] - 1e-6
  assert 1 <= values['diversity/distinct_grids'] <= 3


def test_likelihoods_in_different_units_agree(evaluation):
  values = {name: figure['value'] for name, figure in evaluation[1]['figures'].items()}
  nats = values['likelihood/nats_per_image']
  assert values['likelihood/nats_per_image_token'] == pytest.approx(nats / 64)
  assert values['likelihood/bits_per_image'] == pytest.approx(nats / np.log(2))
  assert values['likelihood/bits_per_dim'] == pytest.approx(nats / np.log(2) / (3 * 32 * 32))
  assert values['likelihood/bits_per_image_token'] == pytest.approx(nats / np.log(2) / 64)


def test_likelihoods_agree_with_the_terms_of_the_elbo(evaluation, model):
  bound = evaluate(EvaluationSettings(model=str(model), num_images=12, out=str(model.parent / 'bound.json')))['figures']
  figures = evaluation[1]['figures']
  assert figures['likelihood/nats_per_caption']['value'] == pytest.approx(bound['elbo/text/nats']['value'], rel=1e-4)
  image = bound['elbo/argmax/kl_prior']  # the entropy of a point mass is 0
  assert figures['likelihood/nats_per_image']['value'] == pytest.approx(image['value'], rel=1e-4)
  assert figures['likelihood/nats_per_image']['stderr'] == pytest.approx(image['stderr'], rel=1e-3)


def test_a_second_evaluation_uses_cached_features_and_agrees(evaluation, model, monkeypatch):
  settings, result = evaluation
  names = sorted(file.name for file in (model.parent / 'features').iterdir())
  assert names == ['reranker_validation_12.npz', 'reranker_validation_12_blur2.npz']
  seen = []
  run = Ranker.image_features
  monkeypatch.setattr(Ranker, 'image_features', lambda self, images: seen.append(len(images)) or run(self, images))
  again = evaluate(dataclasses.replace(settings, metrics=('fid', 'kid')), overwrite=True)
  assert seen == [12]  # the generated images only
  # Without the further images for diversity, the first image of each caption is the same.
  for name, figure in again['figures'].items():
    assert figure == result['figures'][name]


def test_the_result_names_model_features_settings_and_versions(evaluation, model, reranker):
  settings, result = evaluation
  assert result['model'] == bundle.check(model)['params']
  assert result['reranker'] == result['features']['fingerprint'] == bundle.check(Path(reranker), ())['params']
  assert result['settings'] == json.loads(json.dumps(dataclasses.asdict(settings)))
  assert set(result['versions']) == {'dalle_jax', 'jax', 'jaxlib', 'numpy', 'scipy', 'judge'}
  assert result['seen']['images'] == result['seen']['captions'] == 0
  assert 'also occur in training' in result['seen']['note']
  assert result['schema'] == 3 and result['metrics'] == list(settings.metrics)


def test_blurred_fid_is_plotted_by_radius(evaluation, model):
  drawing = (model.parent / 'evaluation_validation_blurred_fid.svg').read_text()
  assert drawing.startswith('<svg') and 'blur radius in pixels' in drawing


def test_fewer_images_than_features_give_a_warning(evaluation, caplog):
  evaluate(dataclasses.replace(evaluation[0], metrics=('fid',), num_images=5), overwrite=True)
  assert 'Fréchet distance of 5 images with 8 features' in caplog.text


def test_a_dvae_without_a_prior_is_measured_with_the_uniform_prior(dvae_alone, tmp_path):
  figures = evaluate(EvaluationSettings(model=str(dvae_alone), num_images=4))['figures']
  assert 'elbo/sampled/uniform/bits_per_dim' in figures
  assert not [name for name in figures if '/prior/' in name or 'text' in name]
  with pytest.raises(ValueError, match=r'holds the dvae only.*config\.dvae\.pretrained'):
    draw(str(dvae_alone), ['a red circle'], DrawSettings(num_images=1), out=str(tmp_path))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'metrics': ('nothing',)}, "--metrics is 'nothing'.*elbo"),
    ({'metrics': ('fid',)}, 'fid needs features of images'),
    ({'metrics': ('clip_score',), 'reranker': 'nowhere'}, r'no model directory at nowhere \(--reranker\)'),
    ({'features': 'inception', 'inception': 'nowhere.pth'}, r'--inception nowhere\.pth cannot be read'),
    ({'features': 'reranker'}, '--features=reranker needs --reranker=DIR'),
    ({'features': 'inception'}, '--features=inception needs --inception=FILE'),
    ({'features': 'clip'}, "--features is 'clip'; allowed are reranker, inception"),
    ({'inception': 'x.pth'}, '--inception is only read with --features=inception'),
    ({'blur_radii': (1.0, -1.0)}, '--blur_radii'),
    ({'images_per_prompt': 1}, '--images_per_prompt is 1; it must be 2 or more'),
    ({'num_images': 10**6}, "--num_images is 1000000, but the split 'validation' has only [0-9]+ images; 0 takes all"),
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
    evaluate(EvaluationSettings(**{'model': str(model), **changes}), overwrite=True)
  assert not (model.parent / 'evaluation_test.json').exists()
