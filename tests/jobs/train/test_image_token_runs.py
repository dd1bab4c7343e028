"""Trains tiny models of image tokens, with and without captions, then loads and uses them."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from web_page import Page

from dalle_jax import bundle
from dalle_jax.bundle import holds_text, takes_prompts
from dalle_jax.config import Config, MeshConfig
from dalle_jax.data import registry
from dalle_jax.jobs.draw import text_samples
from dalle_jax.jobs.draw.generation import draw
from dalle_jax.jobs.evaluate import features
from dalle_jax.jobs.evaluate.evaluation_run import evaluate
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.evaluate.features import Extractor
from dalle_jax.jobs.train import picture_data, picture_report, run
from dalle_jax.jobs.train.experiment import Experiment
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.sharding import make_mesh

CONFIGS = pathlib.Path(__file__).parents[3] / 'configs'
DVAE = {'num_groups': 2, 'patch_size': 2}  # the same grid of codes as with three groups
KINDS = {'image': 'ngram', 'text_image': 'lstm'}  # config.model.tokens -> config.model.kind


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def dvae(root):
  """The model directory of a dVAE with random parameters, so that its codes vary over the image."""
  values = runpy.run_path(str(CONFIGS / 'quickstart.py'))['get_config']('tiny').to_dict() | {'task': 'dvae'}
  values['dvae'] |= DVAE
  config, rng = Config.from_dict(values), np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda: bundle.init_params(config, None)))
  params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
  bundle.save(root / 'dvae', config, None, params, 'data')
  return root / 'dvae'


@pytest.fixture(scope='module')
def make_config(root, dvae):
  """A function that makes tiny configurations. All runs of this module share a data set and a dVAE."""

  def make(variant, **model):
    values = runpy.run_path(str(CONFIGS / 'image_tokens.py'))['get_config'](f'{variant},tiny').to_dict()
    values['data'] |= {'data_dir': str(root / 'data'), 'num_threads': 1, 'num_train': 64}
    values['dvae'] |= {**DVAE, 'pretrained': str(dvae)}
    values['model'] |= {'embed_dim': 16, 'hidden_size': 16, 'num_layers': 1, 'order': 3} | model
    values['sequence_training'] |= {'optimizer': 'adamw', 'sheet_every': 8}
    values['evaluation'] |= {'num_tokens': 84 * 20, 'num_reconstructions': 8, 'num_prompts': 2}
    return Config.from_dict(values)

  return make


@pytest.fixture(scope='module')
def runs(root, make_config):
  """Finished runs: {config.model.tokens: (configuration, work directory, scores)}."""
  runs = {}
  for tokens, kind in KINDS.items():
    config = make_config(f'{kind},text' if tokens == 'text_image' else kind)
    runs[tokens] = config, root / tokens, run.run(config, str(root / tokens))
  return runs


def _load(workdir, part='model'):
  return bundle.load(workdir / 'model', make_mesh(MeshConfig()), needs=('dvae', part))


@pytest.mark.parametrize('tokens', KINDS)
def test_training_writes_scores_samples_and_a_report(runs, tokens):
  config, workdir, scores = runs[tokens]
  assert scores['validation/num_images'] == 84 * 20 // config.sequence_length
  # A uniform distribution over 256 codes has 8 bits. Twelve steps of training may not get below that.
  assert 0 < scores['validation/bits_per_image_token'] < 8.1
  assert scores['validation/nats_per_image'] == pytest.approx(
    scores['validation/bits_per_image_token'] * 64 * np.log(2)
  )
  assert scores['reconstruction/psnr'] > 0 and scores['model/num_values'] > 0
  report = (workdir / 'report.html').read_text()
  with_text = tokens == 'text_image'
  page = Page(report)
  assert ('Samples' in page.text('h2')) == (not with_text) == (not page.of('span', 'token'))
  assert {'Reconstructions', 'Likelihood of tokens', 'Codebook'} <= set(page.text('h2'))
  assert ('validation/bits_per_text_token' in scores) == with_text == ('prompt_accuracy/validation' in scores)
  assert ('context/63' in scores) == (not with_text) == ('Bits per token by the number of tokens before it' in report)
  for name in ('samples_validation.png', 'samples_held_out.png') if with_text else ('samples.png',):
    with Image.open(workdir / name) as image:
      assert min(image.size) >= 64
  assert (workdir / 'sequence' / 'sheets' / '00000008.png').exists() == (KINDS[tokens] != 'ngram')


@pytest.mark.parametrize('tokens', KINDS)
def test_the_model_directory_holds_the_model_and_the_pretrained_dvae(runs, dvae, tokens):
  config, workdir, scores = runs[tokens]
  loaded = _load(workdir)
  assert set(loaded.params) == {'dvae', 'model'} and (loaded.tokenizer is None) == (tokens == 'image')
  pretrained = bundle.load(dvae, make_mesh(MeshConfig()), needs=('dvae',)).params['dvae']
  jax.tree.map(np.testing.assert_array_equal, loaded.params['dvae'], pretrained)
  assert loaded.model.length == config.sequence_length == (84 if loaded.tokenizer else 64)
  dataset = registry.prepare(config.data, workdir / 'data')
  experiment = Experiment(config, Workspace(str(workdir), config), make_mesh(MeshConfig()), dataset, loaded.tokenizer)
  remeasured = picture_report.measure(experiment, loaded.params).scores
  assert {name: scores[name] for name in remeasured} == remeasured


def test_ngrams_are_counted_over_the_whole_training_split_and_start_at_the_first_token_of_an_image(runs):
  config, workdir, _ = runs['image']
  loaded, mesh = _load(workdir), make_mesh(MeshConfig())
  dataset = registry.prepare(config.data, workdir / 'data')
  experiment = Experiment(config, Workspace(str(workdir), config), mesh, dataset, None)
  streams = np.concatenate(list(picture_data.token_streams(experiment, 'train', loaded.params)))
  assert streams.shape == (64, 64) and streams.max() < 256
  first_tokens = np.unique(streams[:, 0])
  logits = np.asarray(loaded.model.prefill(loaded.params['model'], streams[:1, :0])[1])[0]
  # Nearly all probability is on the first tokens of the training images. The discount leaves the rest.
  assert np.exp(logits)[first_tokens].sum() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['neural_ngram,text', 'rnn', 'transformer'])
def test_other_kinds_of_model_can_be_trained(variant, make_config, tmp_path):
  assert run.run(make_config(variant), str(tmp_path), stop_after='sequence') == {}
  loaded = _load(tmp_path)
  assert loaded.model.text_length == (20 if 'text' in variant else 0)


def test_stop_after_dvae_writes_the_tokenizer_but_no_model(make_config, tmp_path):
  config = make_config('ngram,text')
  assert run.run(config, str(tmp_path), stop_after='dvae') == {}
  assert (tmp_path / 'tokenizer.model').exists() and not (tmp_path / 'model').exists()


def test_generate_samples_images_with_and_without_prompts(runs, tmp_path):
  image, captioned = (str(runs[tokens][1] / 'model') for tokens in KINDS)
  assert (takes_prompts(image), takes_prompts(captioned)) == (False, True)
  assert not holds_text(image) and not holds_text(captioned)
  files = draw(image, [''], DrawSettings(num_images=3, seed=1), out=str(tmp_path / 'a'))
  names = [*(f'000_image_seed1_{i:03d}.png' for i in range(3)), 'contact_sheet_image_seed1.png']
  assert [file.name for file in files] == names
  repeated = draw(image, [''], DrawSettings(num_images=3, seed=1, batch_size=2), out=str(tmp_path / 'b'))
  for a, b in zip(files, repeated, strict=True):
    np.testing.assert_array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b)))
  files = draw(captioned, ['a red circle'], DrawSettings(num_images=1), out=str(tmp_path / 'c'))
  assert files[0].name == '000_a_red_circle_seed0_000.png'
  with pytest.raises(ValueError, match=r'--prompt, --prompts_file\) are for models that have read captions'):
    draw(image, ['a red circle'], DrawSettings(num_images=1), out=str(tmp_path / 'd'))
  with pytest.raises(ValueError, match='this needs a model of text'):
    text_samples.write(image, [''], DrawSettings(num_images=1))


@pytest.mark.parametrize('tokens', KINDS)
def test_evaluate_agrees_with_the_scores_of_the_run_and_generates_images(runs, monkeypatch, tokens):
  _, workdir, scores = runs[tokens]
  mean_colours = Extractor('inception', 'mean colours', lambda images: images.mean(axis=(1, 2)).astype(np.float32))
  monkeypatch.setattr(features, 'load_extractor', lambda *_: mean_colours)
  settings = EvaluationSettings(
    model=str(workdir / 'model'), metrics=('elbo', 'likelihood', 'fid'), features='inception', inception='unused',
    num_images=int(scores['validation/num_images']),
  )  # fmt: skip
  figures = evaluate(settings)['figures']
  assert 'elbo/sampled/uniform/bits_per_dim' in figures
  assert not [name for name in figures if '/prior/' in name]
  assert figures['likelihood/bits_per_image_token']['value'] == pytest.approx(scores['validation/bits_per_image_token'])
  if tokens == 'text_image':
    text = figures['likelihood/bits_per_text_token']
    assert text['value'] == pytest.approx(scores['validation/bits_per_text_token'])
  assert figures['fid/inception']['count'] == settings.num_images


def test_a_missing_pretrained_dvae_is_named(make_config, root):
  values = make_config('lstm').to_dict()
  values['dvae']['pretrained'] = str(root / 'nowhere')
  with pytest.raises(ValueError, match=r'no model directory at .*nowhere \(config\.dvae\.pretrained\)'):
    run.run(Config.from_dict(values), str(root / 'other'))
