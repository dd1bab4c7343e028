"""The job of sequence models over a dVAE's codes, alone and after captions, and what their directories serve for."""

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
KINDS = {'image': 'ngram', 'text_image': 'lstm'}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def dvae(root):
  """A dVAE of random parameters, as one alone: its codes differ from place to place."""
  values = runpy.run_path(str(CONFIGS / 'quickstart.py'))['get_config']('tiny').to_dict() | {'task': 'dvae'}
  config, rng = Config.from_dict(values), np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda: bundle.init_params(config, None)))
  params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
  bundle.save(root / 'dvae', config, None, params, 'data')
  return root / 'dvae'


@pytest.fixture(scope='module')
def make_config(root, dvae):
  """A tiny configuration; the runs of this module share data and dVAE."""

  def make(variant, **model):
    values = runpy.run_path(str(CONFIGS / 'image_tokens.py'))['get_config'](f'{variant},tiny').to_dict()
    values['data'] |= {'data_dir': str(root / 'data'), 'num_threads': 1, 'num_train': 64}
    values['dvae']['pretrained'] = str(dvae)
    values['model'] |= {'embed_dim': 16, 'hidden_size': 16, 'num_layers': 1, 'order': 3} | model
    values['sequence_training'] |= {'optimizer': 'adamw', 'sheet_every': 8}
    values['evaluation'] |= {'num_tokens': 84 * 20, 'num_reconstructions': 8, 'num_prompts': 2}
    return Config.from_dict(values)

  return make


@pytest.fixture(scope='module')
def runs(root, make_config):
  """Finished runs, by what their tokens are: configuration, work directory and scores."""
  found = {}
  for tokens, kind in KINDS.items():
    config = make_config(f'{kind},text' if tokens == 'text_image' else kind)
    found[tokens] = config, root / tokens, run.run(config, str(root / tokens))
  return found


def _load(workdir, part='model'):
  return bundle.load(workdir / 'model', make_mesh(MeshConfig()), needs=('dvae', part))


@pytest.mark.parametrize('tokens', KINDS)
def test_scores_samples_and_a_report_are_written(runs, tokens):
  config, workdir, scores = runs[tokens]
  assert scores['validation/num_images'] == 84 * 20 // config.sequence_length
  # Twelve steps from the uniform distribution over the 256 codes, or what was counted of them.
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
def test_the_directory_gives_back_the_model_and_its_dvae(runs, dvae, tokens):
  config, workdir, scores = runs[tokens]
  loaded = _load(workdir)
  assert set(loaded.params) == {'dvae', 'model'} and (loaded.tokenizer is None) == (tokens == 'image')
  former = bundle.load(dvae, make_mesh(MeshConfig()), needs=('dvae',)).params['dvae']
  jax.tree.map(np.testing.assert_array_equal, loaded.params['dvae'], former)
  assert loaded.model.length == config.sequence_length == (84 if loaded.tokenizer else 64)
  dataset = registry.prepare(config.data, workdir / 'data')
  experiment = Experiment(config, Workspace(str(workdir), config), make_mesh(MeshConfig()), dataset, loaded.tokenizer)
  again = picture_report.measure(experiment, loaded.params).scores
  assert {name: scores[name] for name in again} == again


def test_ngrams_are_counted_over_the_whole_training_split_from_its_images_beginnings(runs):
  config, workdir, _ = runs['image']
  loaded, mesh = _load(workdir), make_mesh(MeshConfig())
  dataset = registry.prepare(config.data, workdir / 'data')
  experiment = Experiment(config, Workspace(str(workdir), config), mesh, dataset, None)
  batches = list(picture_data.token_streams(experiment, 'train', loaded.params))
  rows = np.concatenate(batches)
  assert rows.shape == (64, 64) and rows.max() < 256
  firsts = np.unique(rows[:, 0])
  logits = np.asarray(loaded.model.prefill(loaded.params['model'], rows[:1, :0])[1])[0]
  # The first token of an image is one that some image began with, but for what the discount leaves.
  assert np.exp(logits)[firsts].sum() > 0.9


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ('rnn', 'transformer')]


@pytest.mark.parametrize('variant', ['neural_ngram,text', *SLOW])
def test_the_other_kinds_are_trained_too(variant, make_config, tmp_path):
  assert run.run(make_config(variant), str(tmp_path), stop_after='sequence') == {}
  loaded = _load(tmp_path)
  assert loaded.model.text_length == (20 if 'text' in variant else 0)


def test_stages_can_be_stopped_after(make_config, tmp_path):
  config = make_config('ngram,text')
  assert run.run(config, str(tmp_path), stop_after='dvae') == {}
  assert (tmp_path / 'tokenizer.model').exists() and not (tmp_path / 'model').exists()


def test_pictures_are_drawn_without_prompts_or_with(runs, tmp_path):
  image, captioned = (str(runs[tokens][1] / 'model') for tokens in KINDS)
  assert (takes_prompts(image), takes_prompts(captioned)) == (False, True)
  assert not holds_text(image) and not holds_text(captioned)
  files = draw(image, [''], DrawSettings(num_images=3, seed=1), out=str(tmp_path / 'a'))
  assert [file.name for file in files] == [*(f'000_image_{i:03d}.png' for i in range(3)), 'contact_sheet.png']
  again = draw(image, [''], DrawSettings(num_images=3, seed=1, batch_size=2), out=str(tmp_path / 'b'))
  for a, b in zip(files, again, strict=True):
    np.testing.assert_array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b)))
  files = draw(captioned, ['a red circle'], DrawSettings(num_images=1), out=str(tmp_path / 'c'))
  assert files[0].name == '000_a_red_circle_000.png'
  with pytest.raises(ValueError, match=r'--prompt, --prompts_file\) are for models that have read captions'):
    draw(image, ['a red circle'], DrawSettings(num_images=1), out=str(tmp_path / 'd'))
  with pytest.raises(ValueError, match='this needs a model of text'):
    text_samples.write(image, [''], DrawSettings(num_images=1))


@pytest.mark.parametrize('tokens', KINDS)
def test_evaluate_agrees_with_the_report_and_draws(runs, monkeypatch, tokens):
  _, workdir, scores = runs[tokens]
  colours = Extractor('inception', 'mean colours', lambda images: images.mean(axis=(1, 2)).astype(np.float32))
  monkeypatch.setattr(features, 'load_extractor', lambda *_: colours)
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


def test_a_missing_dvae_is_named(make_config, root):
  values = make_config('lstm').to_dict()
  values['dvae']['pretrained'] = str(root / 'nowhere')
  with pytest.raises(ValueError, match=r'no model directory at .*nowhere \(config\.dvae\.pretrained\)'):
    run.run(Config.from_dict(values), str(root / 'other'))
