"""Trains configs/quickstart.py:tiny from end to end."""

import dataclasses
import json
import os
import pathlib
import runpy
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from web_page import Page

from dalle_jax import bundle, stages
from dalle_jax.config import Config, MeshConfig
from dalle_jax.data import registry
from dalle_jax.jobs import examples
from dalle_jax.jobs.draw.generation import draw
from dalle_jax.jobs.train import picture_data, run, sheet_hooks
from dalle_jax.jobs.train.experiment import Experiment
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.sharding import make_mesh
from dalle_jax.training import loop
from dalle_jax.training.metrics_log import read_metrics
from dalle_jax.training.nonfinite import NonFiniteError
from dalle_jax.training.signals import EXIT_INTERRUPTED

QUICKSTART = pathlib.Path(__file__).parents[3] / 'configs' / 'quickstart.py'


def _config():
  values = runpy.run_path(str(QUICKSTART))['get_config']('tiny').to_dict()
  values['prior_training'] |= {'sheet_every': 5, 'checkpoint_every': 8}
  values['dvae_training'] |= {'optimizer': 'adamw'}  # compiles in a fraction of the time of Muon, which the prior uses
  values['data'] |= {'num_threads': 1}
  values['dvae'] |= {'num_groups': 2, 'patch_size': 2}  # the same grid of codes as with three groups
  return Config.from_dict(values)


CONFIG = _config()


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run: its work directory and its scores."""
  workdir = tmp_path_factory.mktemp('runs') / 'quickstart'
  return workdir, run.run(CONFIG, str(workdir))


def test_scores_json_has_the_expected_names_and_plausible_values(finished):
  workdir, scores = finished
  assert json.loads((workdir / 'scores.json').read_text()) == scores
  assert {
    'prompt_accuracy/validation', 'prompt_accuracy/validation/one_object', 'prompt_accuracy/validation/two_objects',
    'prompt_accuracy/held_out', 'prompt_accuracy_low/validation', 'prompt_accuracy_high/validation',
    'prompt_count/validation', 'reconstruction/psnr',
    'codebook/perplexity', 'codebook/use', 'dvae/loss', 'dvae/psnr_hard', 'prior/loss', 'prior/image_nats_per_token',
    'seconds/data', 'seconds/dvae', 'seconds/prior', 'seconds/total',
  } <= set(scores)  # fmt: skip
  assert all(isinstance(value, float) and np.isfinite(value) for value in scores.values())
  assert 0 <= scores['prompt_accuracy/validation'] <= 1
  assert scores['prompt_count/validation'] == 8
  for split in ('validation', 'held_out'):
    assert scores[f'seen/{split}/images'] == scores[f'seen/{split}/captions'] == scores[f'seen/{split}/left_out'] == 0
  assert scores['reconstruction/held_out/psnr'] > 0
  assert 1 <= scores['codebook/perplexity'] <= CONFIG.dvae.image_vocab_size
  seconds = [value for name, value in scores.items() if name.startswith('seconds/') and name != 'seconds/total']
  assert scores['seconds/total'] == pytest.approx(sum(seconds))


def test_training_writes_sheets_and_a_report(finished):
  workdir, scores = finished
  for name in ('reconstructions.png', 'reconstructions_held_out.png', 'samples_validation.png', 'samples_held_out.png'):
    with Image.open(workdir / name) as image:
      assert min(image.size) >= 32
  assert sorted(file.name for file in (workdir / 'dvae' / 'sheets').iterdir()) == ['00000008.png']
  assert sorted(file.name for file in (workdir / 'prior' / 'sheets').iterdir()) == ['00000005.png', '00000010.png']
  report = Page((workdir / 'report.html').read_text())
  assert report.text('h2') == [
    'Scores', 'Reconstructions', 'Samples: new captions', 'Samples: combinations that never occur in training',
    'Likelihood of tokens', 'Codebook', 'Curves', 'Configuration',
  ]  # fmt: skip
  assert 'prompt_accuracy/validation' in report.text('caption')
  assert 'held_out: the images of 0 of' in (workdir / 'report.html').read_text()
  exact_values = {float(data.attrs['value']) for data in report.of('data')}
  assert {scores['reconstruction/psnr'], scores['prompt_accuracy/validation']} <= exact_values
  settings = CONFIG.evaluation
  judged_images = report.of('img', 'right') + report.of('img', 'wrong')
  assert len(judged_images) == 2 * settings.sheet_prompts * settings.images_per_prompt
  assert len(report.of('figure', 'reading')) == 16 and report.of('span', 'token')


def test_metrics_are_written_for_both_stages(finished):
  workdir, _ = finished
  for stage in ('dvae', 'prior'):
    lines = read_metrics(workdir / stage / 'metrics.jsonl')
    assert {line['step'] for line in lines} >= {4, 8, 12}
    assert any('eval/loss' in line for line in lines)
    assert any('loss' in line for line in lines)


def test_the_model_directory_is_complete_and_can_be_loaded(finished):
  workdir, _ = finished
  model = bundle.load(workdir / 'model', make_mesh(MeshConfig()))
  assert model.config == CONFIG
  assert set(model.params) == {'dvae', 'prior'}
  assert model.info['params'] == bundle.fingerprint(jax.device_get(model.params))
  assert not (workdir / 'model.partial').exists()


def test_the_model_generates_images(finished, tmp_path):
  settings = DrawSettings(num_images=2, seed=1, batch_size=2)
  *image_files, sheet_file = draw(str(finished[0] / 'model'), ['a red circle'], settings, out=str(tmp_path))
  assert len(image_files) == 2
  with Image.open(image_files[0]) as image, Image.open(sheet_file) as sheet:
    assert image.size == (32, 32)
    assert sheet.size[0] > 64


@pytest.fixture
def no_training(monkeypatch):
  """Makes a test fail if it trains anything."""

  def fail(*args, **kwargs):
    raise AssertionError('trained again')

  monkeypatch.setattr(loop, 'make_train_step', fail)
  monkeypatch.setattr(picture_data, 'train_tokenizer', fail)


def _info(workdir):
  """The contents of bundle.json without 'files' and their checksum, because Orbax gives files random names."""
  return {name: value for name, value in bundle.check(workdir / 'model').items() if name not in ('files', 'checksum')}


def test_a_finished_run_does_not_train_again(finished, no_training):
  workdir, _ = finished
  info = _info(workdir)
  assert run.main(CONFIG, str(workdir), 'prior') == 0
  assert _info(workdir) == info


def test_a_finished_run_rejects_another_configuration(finished, no_training):
  other = dataclasses.replace(CONFIG, prior=dataclasses.replace(CONFIG.prior, num_layers=7))
  with pytest.raises(ValueError, match=r'config\.prior\.num_layers: 2 -> 7'):
    run.run(other, str(finished[0]))


@pytest.fixture
def without_prior(finished, tmp_path):
  """A copy of the finished run without the results of the second stage."""
  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  for name in ('prior', 'model'):
    shutil.rmtree(workdir / name)
  return workdir


def test_an_interrupted_run_resumes_to_the_same_model(finished, without_prior, monkeypatch, capsys):
  with monkeypatch.context() as patch:
    patch.setattr(sheet_hooks.SampleHook, '__call__', lambda hook, state, step: os.kill(os.getpid(), signal.SIGTERM))
    assert run.main(CONFIG, str(without_prior), 'prior') == EXIT_INTERRUPTED
  assert 'Stopped on request at step 5 of 12' in capsys.readouterr().out
  assert not (without_prior / 'model').exists()
  with monkeypatch.context() as patch:
    patch.setattr(sheet_hooks.SampleHook, '__call__', lambda hook, state, step: None)
    assert run.main(CONFIG, str(without_prior), 'prior') == 0
  assert _info(without_prior) == _info(finished[0])
  mesh = make_mesh(MeshConfig())
  models = [bundle.load(workdir / 'model', mesh).params for workdir in (finished[0], without_prior)]
  jax.tree.map(np.testing.assert_array_equal, *models)
  steps = [line['step'] for line in read_metrics(without_prior / 'prior' / 'metrics.jsonl') if 'loss' in line]
  assert steps == sorted(set(steps))


def test_divergence_prints_an_error_and_returns_its_exit_status(monkeypatch, capsys, tmp_path):
  def diverge(*args):
    raise NonFiniteError('the loss is not finite', '', 1)

  monkeypatch.setattr(run, 'run', diverge)
  assert run.main(CONFIG, str(tmp_path)) == run.EXIT_DIVERGED == 1
  assert 'error: the loss is not finite' in capsys.readouterr().out


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_stages_ends_the_run_with_the_status_of_an_interruption(monkeypatch, capsys, tmp_path, number):
  monkeypatch.setattr(run, 'run', lambda *args: os.kill(os.getpid(), number))
  # A process that a shell starts in the background ignores SIGINT, so the test installs the default handler.
  previous = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    assert run.main(CONFIG, str(tmp_path)) == EXIT_INTERRUPTED
  finally:
    signal.signal(signal.SIGINT, previous)
  assert 'the same command continues' in capsys.readouterr().out


def test_a_checkpoint_is_not_restored_with_other_data(folder, tmp_path):
  config = _folder_config(folder)
  streams = []
  for fingerprint in ('one', 'another'):
    dataset = dataclasses.replace(registry.prepare(config.data, tmp_path), fingerprint=fingerprint)
    experiment = Experiment(config, Workspace(str(tmp_path / 'run'), config), make_mesh(MeshConfig()), dataset, None)
    streams.append(picture_data.make_batches(experiment, stages.find('dvae'))[0])
  streams[0].restore(streams[0].state())
  with pytest.raises(ValueError, match='fingerprint: one -> another'):
    streams[1].restore(streams[0].state())


def _folder_config(path, **data):
  groups = CONFIG.to_dict()
  groups['data'] |= {'source': 'folder', 'path': str(path), 'validation_fraction': 0.5, **data}
  return Config.from_dict(groups)


@pytest.mark.parametrize('make', [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text('')])
def test_a_missing_or_unusable_data_folder_is_named(tmp_path, make):
  make(tmp_path / 'pictures')
  with pytest.raises(ValueError, match='pictures'):
    run.run(_folder_config(tmp_path / 'pictures'), str(tmp_path / 'run'), 'data')


@pytest.fixture
def folder(tmp_path):
  """A folder of captioned grey images that are darker on the left."""
  path = tmp_path / 'pictures'
  path.mkdir()
  for i in range(8):
    ramp = np.linspace(0, 20 * i + 50, 32).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp[None, :, None], (32, 32, 3))).save(path / f'{i}.png')
    (path / f'{i}.txt').write_text(f'gray number {i}')
  return path


def _batches(config, workdir, stage='dvae'):
  training = dataclasses.replace(config.dvae_training, batch_size=4, eval_batches=3)
  config = dataclasses.replace(config, **{f'{stage}_training': training})
  space = Workspace(str(workdir), config)
  dataset = picture_data.prepare(config, space)
  experiment = Experiment(config, space, make_mesh(MeshConfig()), dataset, None)
  return dataset, picture_data.make_batches(experiment, stages.find(stage))


def test_folders_are_split_and_evaluated_in_a_fixed_order(folder, tmp_path):
  config = _folder_config(folder)
  dataset, (stream, evaluation) = _batches(config, tmp_path / 'run')
  assert set(dataset.splits) == {'train', 'validation'}
  batch = next(stream)
  assert (batch['image'].shape, batch['image'].dtype) == ((4, 32, 32, 3), np.uint8)
  first, second = list(evaluation()), list(evaluation())
  assert 1 <= len(first) <= 3
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a['image'], b['image'])


def test_without_a_validation_split_nothing_is_evaluated(folder, tmp_path):
  dataset, (_, evaluation) = _batches(_folder_config(folder, validation_fraction=0.0), tmp_path / 'run')
  assert dataset.splits == ('train',)
  assert evaluation is None
  assert examples.sheet_splits(dataset) == {'train': 'captions seen in training'}


def test_only_the_dvae_trains_on_mirrored_images(folder, tmp_path):
  config = _folder_config(folder, flip=True)

  def mirrored_share(stage):
    _, (stream, _) = _batches(config, tmp_path / stage, stage)
    images = np.concatenate([next(stream)['image'] for _ in range(6)]).astype(int)
    return np.mean(images[:, 0, 0, 0] > images[:, 0, -1, 0])

  assert 0.1 < mirrored_share('dvae') < 0.9
  assert mirrored_share('prior') == 0


def test_spread_selects_distinct_items_at_even_distances():
  assert examples.spread('aabbccdd', 2) == ['a', 'c']
  assert examples.spread('aab', 5) == ['a', 'b']
  assert examples.spread(map(str, range(100)), 4) == ['0', '25', '50', '75']
