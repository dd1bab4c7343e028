"""Encodes folders of tiny pictures with a random dVAE, and reads, trains and refuses the codes."""

import dataclasses
import functools
import itertools
import json
import pathlib
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from dalle_jax import bundle, stages
from dalle_jax.config import Config, MeshConfig
from dalle_jax.data import registry
from dalle_jax.data.shards import code_records, picture_records
from dalle_jax.data.text.tokenizer import train_tokenizer
from dalle_jax.jobs import cached_codes, seen_records
from dalle_jax.jobs.study import image_codes
from dalle_jax.jobs.train import picture_data, run
from dalle_jax.jobs.train.experiment import Experiment
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.sharding import make_mesh

CONFIGS = pathlib.Path(__file__).parents[3] / 'configs'
DVAE = {'num_groups': 2, 'patch_size': 2, 'hidden_size': 8}


def _values(**data):
  values = runpy.run_path(str(CONFIGS / 'quickstart.py'))['get_config']('tiny').to_dict()
  values['dvae'] |= DVAE
  values['tokenizer'] |= {'vocab_size': 300, 'bpe_dropout': 0.0, 'text_length': 16}
  values['data'] |= {'source': 'auto', 'num_threads': 1, 'num_workers': 0, 'validation_fraction': 0.3, **data}
  values['prior_training'] |= {'batch_size': 4, 'num_steps': 4, 'eval_batches': 2}
  return values


def _save_dvae(path, seed):
  values, rng = _values() | {'task': 'dvae'}, np.random.default_rng(seed)
  config = Config.from_dict(values)
  shapes = nn.unbox(jax.eval_shape(lambda: bundle.init_params(config, None)))
  params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
  bundle.save(path, config, None, params, 'data')
  return path


def _write_pictures(folder, count, seed=0):
  folder.mkdir()
  rng = np.random.default_rng(seed)
  for number in range(count):
    pixels = rng.integers(0, 256, (5, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((72, 40)).save(folder / f'{number:02}.png')
    captions = f'picture {seed} {number}\n' + (f'the same picture {seed} {number}\n' if number % 2 else '')
    (folder / f'{number:02}.txt').write_text(captions)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Two folders of pictures, two dVAEs, and the codes of the first folder by the first dVAE."""
  root = tmp_path_factory.mktemp('codes')
  _write_pictures(root / 'raw', 11)
  _write_pictures(root / 'more', 6, seed=1)
  for seed, name in enumerate(('dvae', 'other')):
    _save_dvae(root / name, seed)
  image_codes.run(_config(root, 'raw', crop='random'), root / 'cached', num_crops=2, batch_size=8, per_shard=3)
  return root


def _config(root, path, model='dvae', **data):
  values = _values(**({'path': str(root / path) if ':' not in path else path} | data))
  values['dvae']['pretrained'] = str(root / model) if model else ''
  return Config.from_dict(values)


def _batches(config, workdir, count, held_out=False):
  """The tokenizer, and the first batches of the prior's stream or of its evaluation."""
  config, space = picture_data.with_source(config), Workspace(str(workdir), config)
  dataset, tokenizer = picture_data.tokenize(config, space, picture_data.prepare(config, space))
  mesh = make_mesh(MeshConfig())
  experiment = Experiment(config, space, mesh, dataset, tokenizer)
  stream, evaluation = picture_data.make_batches(experiment, stages.find('prior'))
  batches = list(itertools.islice(evaluation() if held_out else stream, count))
  stream.close()
  return experiment, batches


@pytest.mark.parametrize('held_out', [False, True])
def test_cached_and_raw_centre_crops_give_equal_losses(root, tmp_path, held_out):
  figures = []
  params = bundle.load(root / 'dvae', make_mesh(MeshConfig()), needs=('dvae',)).params['dvae']
  for path in ('raw', 'cached', f'{root}/cached:1,{root}/cached:1'):
    if held_out and ':' in path:
      continue  # its held-out pictures occur twice
    experiment, batches = _batches(_config(root, path), tmp_path / str(len(figures)), 3, held_out)
    task = experiment.task('prior')
    prior = nn.unbox(task.init(jax.random.key(0)))['prior']
    loss = jax.jit(
      lambda batch, task=task, prior=prior: task.evaluate({'prior': prior, 'dvae': params}, batch, None, 0)
    )
    figures.append((batches, [loss(batch) for batch in batches]))
    assert ('image' in batches[0]) == (path == 'raw') and ('codes' in batches[0]) == (path != 'raw')
  (raw, raw_losses), (cached, cached_losses) = figures[:2]
  for one, other in zip(raw, cached, strict=True):
    np.testing.assert_array_equal(one['text'], other['text'])
  for one, other in zip(raw_losses, cached_losses, strict=True):
    assert float(one['loss']) == float(other['loss']) and float(one['loss']) > 1
  assert len({codes.tobytes() for batch in cached for codes in batch['codes']}) > 3


def test_a_mixture_of_codes_and_pictures_encodes_only_the_pictures(root, tmp_path):
  experiment, (batch, *_) = _batches(_config(root, f'{root}/cached:0.5,{root}/more:0.5'), tmp_path / 'run', 2)
  cached = batch['codes'][:, 0] >= 0
  assert cached.sum() == 2 and not batch['image'][cached].any() and batch['image'][~cached].any()
  params = {'dvae': bundle.load(root / 'dvae', make_mesh(MeshConfig()), needs=('dvae',)).params['dvae']}
  from dalle_jax.training.tasks.codes import codes_of, encode

  codes = codes_of(experiment.config, params, batch)
  np.testing.assert_array_equal(codes[cached], batch['codes'][cached])
  np.testing.assert_array_equal(codes[~cached], encode(experiment.config, params, batch['image'])[~cached])


def test_each_crop_is_drawn_and_crops_are_those_of_the_reader(root):
  dataset = registry.prepare(_config(root, 'cached').data, root / 'work')
  raw = registry.prepare(_config(root, 'raw').data, root / 'work')
  assert dataset.splits == ('train', 'validation')
  for split in dataset.splits:
    source, pictures = dataset.open(split), raw.open(split)
    assert [source.captions(i) for i in range(len(source))] == [pictures.captions(i) for i in range(len(pictures))]
    assert len(source[0]['codes']) == (3 if split == 'train' else 1)
  from dalle_jax.data.batches import Preprocess

  record = dataset.open('train')[0]
  transform = Preprocess(32, crop='random')
  drawn = {transform(record, np.random.default_rng(seed))['codes'].tobytes() for seed in range(20)}
  assert drawn == {codes.tobytes() for codes in record['codes'][1:]} and len(drawn) == 2
  assert record['codes'].max() < 2**16 and record['tokenizer']


def test_pictures_that_occur_in_training_are_found_whether_encoded_or_not(root, tmp_path):
  config = picture_data.with_source(_config(root, 'cached'))
  cached, raw = (registry.prepare(_config(root, path).data, root / 'work') for path in ('cached', 'raw'))
  overlaps = seen_records.leave_out(config, raw, cached, tmp_path).overlaps
  assert overlaps['train'].images == len(raw.open('train')) and overlaps['validation'].images == 0


def test_encoding_goes_on_after_a_kill(root, tmp_path, monkeypatch):
  config, encoded, calls = _config(root, 'raw', crop='random'), [], []

  def stopped(self, pictures):
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return original(self, pictures)

  original = image_codes.CodeEncoder.encode
  with monkeypatch.context() as patch:
    patch.setattr(image_codes.CodeEncoder, 'encode', stopped)
    with pytest.raises(KeyboardInterrupt):
      image_codes.run(config, tmp_path / 'out', num_crops=2, batch_size=8, per_shard=3)
  with pytest.raises(ValueError, match='is not finished'):
    registry.prepare(_config(root, str(tmp_path / 'out')).data, root / 'work')
  prepare = image_codes.CodeEncoder._prepare
  monkeypatch.setattr(image_codes.CodeEncoder, '_prepare', lambda *args: encoded.append(args[2]) or prepare(*args))
  image_codes.run(config, tmp_path / 'out', num_crops=2, batch_size=8, per_shard=3)
  assert len(encoded) == 11 - 6  # two shards of three pictures had been finished
  for split in ('train', 'validation'):
    ours, theirs = (picture_records.read_json_object(path / split / 'manifest.json') for path in
                    (tmp_path / 'out', root / 'cached'))  # fmt: skip
    assert [shard['sha256'] for shard in ours['shards']] == [shard['sha256'] for shard in theirs['shards']]
  with pytest.raises(ValueError, match=r'has the beginning of other data \(crops'):
    image_codes.run(config, tmp_path / 'out', num_crops=1, batch_size=8, per_shard=3)


def test_another_tokenizer_is_refused_when_encoding_goes_on(root, tmp_path):
  shutil.copytree(root / 'cached', tmp_path / 'out')
  train_tokenizer(['other words', 'and more of them'], 300).save(tmp_path / 'other.model')
  kept = (tmp_path / 'out' / image_codes.TOKENIZER).read_bytes()
  run_again = functools.partial(
    image_codes.run, _config(root, 'raw', crop='random'), tmp_path / 'out', num_crops=2, batch_size=8, per_shard=3
  )
  with pytest.raises(ValueError, match=r'has the beginning of other data: .* another tokenizer \(\w+\).* --tokenizer'):
    run_again(tokenizer=str(tmp_path / 'other.model'))
  assert (tmp_path / 'out' / image_codes.TOKENIZER).read_bytes() == kept
  run_again(tokenizer=str(root / 'cached' / image_codes.TOKENIZER))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'task': 'dvae', 'model': ''}, r'holds image codes, but the stage dvae of config\.task=dvae needs pictures'),
    ({'model': ''}, r'set config\.dvae\.pretrained=.*dvae, whose dVAE made the codes'),
    ({'task': 'joint', 'model': ''}, 'the stage joint'),
    ({'task': 'reranker', 'model': ''}, 'the stage reranker'),
    ({'resampling': 'box'}, r"config\.data\.resampling is 'box' here, and 'area' for the codes"),
    ({'image_size': 64}, r'config\.data\.image_size is 64 here, and 32'),
    ({'crop': 'paper'}, r"config\.data\.crop is 'paper'.* Set config\.data\.crop to center or random"),
  ],
)
def test_what_the_codes_cannot_serve_is_refused(root, changes, message):
  changes = dict(changes)
  task, model = changes.pop('task', 'all'), changes.pop('model', 'dvae')
  for path in ('cached', f'{root}/cached:0.5,{root}/more:0.5'):
    config = dataclasses.replace(_config(root, path, model, **changes), task=task)
    with pytest.raises(ValueError, match=message):
      cached_codes.check_config(config)


def test_codes_of_another_dvae_are_refused_by_name(root, tmp_path):
  message = r"codes of the dVAE in '?.*codes.*/dvae'? \(parameters \w+\), but config\.dvae\.pretrained=.*/other has"
  with pytest.raises(ValueError, match=message):
    run.run(_config(root, 'cached', 'other'), str(tmp_path / 'run'))


def test_damaged_codes_are_named(root, tmp_path):
  shutil.copytree(root / 'cached', tmp_path / 'cut')
  config = _config(root, str(tmp_path / 'cut')).data
  shard = tmp_path / 'cut' / 'train' / 'pictures-00001.array_record'
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r'pictures-00001\.array_record.* bytes, and not'):
    registry.prepare(config, root / 'work')
  shard.unlink()
  with pytest.raises(ValueError, match='is missing'):
    registry.prepare(config, root / 'work')
  manifest = tmp_path / 'cut' / code_records.MANIFEST
  manifest.write_text(json.dumps({**json.loads(manifest.read_text()), 'grid': 'x'}))
  with pytest.raises(ValueError, match='is damaged'):
    registry.prepare(config, root / 'work')
  for data in (b'', b'DJC1', b'DJC1\2\0\0\0{}', code_records.encode(np.zeros((1, 2, 2), np.int32), [], 1)[:-1]):
    with pytest.raises(ValueError, match='it is no record of codes'):
      code_records.decode(data)


@pytest.mark.slow
def test_a_prior_trains_evaluates_and_reports_from_codes_and_mixtures(root, tmp_path):
  from dalle_jax.jobs.evaluate.evaluation_run import evaluate
  from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings

  for name, path in {'cached': 'cached', 'mixed': f'{root}/cached:0.5,{root}/more:0.5'}.items():
    scores = run.run(_config(root, path), str(tmp_path / name))
    assert 'codebook/use' in scores and 'reconstruction/psnr' not in scores and 'prior/loss' in scores
    assert 'Reconstructions are therefore not compared' in (tmp_path / name / 'report.html').read_text()
    settings = EvaluationSettings(model=str(tmp_path / name / 'model'), metrics=('likelihood', 'codebook'))
    figures = evaluate(settings)['figures']
    assert figures['likelihood/bits_per_image_token']['value'] > 0
    with pytest.raises(ValueError, match='these data hold image codes, and elbo needs pictures'):
      evaluate(dataclasses.replace(settings, metrics=('elbo',)), overwrite=True)
