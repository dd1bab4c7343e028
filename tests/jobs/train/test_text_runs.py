"""Trains tiny models of text from end to end, then loads and uses them."""

import os
import pathlib
import runpy
import signal

import jax
import numpy as np
import pytest

from dalle_jax import bundle
from dalle_jax.bundle import holds_text
from dalle_jax.config import Config, MeshConfig
from dalle_jax.jobs.draw import text_samples
from dalle_jax.jobs.draw.generation import draw
from dalle_jax.jobs.train import run
from dalle_jax.sampling.draw_settings import DrawSettings
from dalle_jax.sharding import make_mesh
from dalle_jax.training.signals import Interrupted

CONFIG = pathlib.Path(__file__).parents[3] / 'configs' / 'language.py'


def _config(kind, **changes):
  values = runpy.run_path(str(CONFIG))['get_config'](f'{kind},tiny').to_dict()
  values['tokenizer']['vocab_size'] = 400
  values['model'] |= {'length': 16, 'embed_dim': 16, 'hidden_size': 16, 'num_layers': 1, 'order': 3}
  values['sequence_training'] |= {'num_steps': 12, 'log_every': 4, 'eval_every': 8, 'eval_batches': 2}
  values['sequence_training'] |= {'checkpoint_every': 4, 'batch_size': 4}
  values['evaluation'] |= {'num_tokens': 320, 'num_context_targets': 8, 'num_text_samples': 2}
  return Config.from_dict(values | changes)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Finished runs of two kinds of model: {kind: (work directory, scores)}."""
  root = tmp_path_factory.mktemp('runs')
  return {kind: (root / kind, run.run(_config(kind), str(root / kind))) for kind in ('ngram', 'lstm')}


@pytest.mark.parametrize('kind', ['ngram', 'lstm'])
def test_training_writes_scores_samples_and_a_report(runs, kind):
  workdir, scores = runs[kind]
  names = {'validation/bits_per_token', 'validation/bits_per_byte', 'context/0', 'context/15', 'model/num_values'}
  assert names <= set(scores) and scores['validation/num_tokens'] == 320
  assert 0 < scores['validation/bits_per_byte'] < scores['validation/bits_per_token'] < 9
  assert (workdir / 'samples.txt').read_text().count('----') >= 1
  assert 'How far back the model looks' in (workdir / 'report.html').read_text()


@pytest.mark.parametrize('kind', ['ngram', 'lstm'])
def test_the_model_directory_can_be_loaded_and_used(runs, kind):
  workdir, _ = runs[kind]
  loaded = bundle.load(workdir / 'model', make_mesh(MeshConfig()), needs=('model',))
  text = 'The "for" statement \u2581\0'.encode()
  ids = loaded.tokenizer.encode(text)
  assert loaded.tokenizer.decode(ids) == text
  logits = np.asarray(loaded.model.logits(loaded.params['model'], ids[None, :16]))
  np.testing.assert_allclose(np.exp(jax.nn.log_softmax(logits)).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize('kind', ['neural_ngram', 'transformer', pytest.param('rnn', marks=pytest.mark.slow)])
def test_other_kinds_of_model_can_be_trained(kind, tmp_path):
  config = _config(kind, tokenizer={'kind': 'bytes'})
  assert run.run(config, str(tmp_path), stop_after='sequence') == {}
  loaded = bundle.load(tmp_path / 'model', make_mesh(MeshConfig()), needs=('model',))
  assert loaded.model.vocab_size == 256 and holds_text(str(tmp_path / 'model'))


def test_an_interrupted_run_resumes_to_the_same_scores(runs, tmp_path, monkeypatch):
  from dalle_jax.training.tasks.sequence import SequenceTask

  summarize = SequenceTask.summarize

  def stop(self, means):
    os.kill(os.getpid(), signal.SIGTERM)
    return summarize(self, means)

  monkeypatch.setattr(SequenceTask, 'summarize', stop)
  with pytest.raises(Interrupted, match='step 8 of 12'):
    run.run(_config('lstm'), str(tmp_path))
  monkeypatch.undo()
  scores = run.run(_config('lstm'), str(tmp_path))
  assert scores['validation/bits_per_token'] == runs['lstm'][1]['validation/bits_per_token']


def test_texts_start_with_the_prompt_and_depend_on_the_seed_but_not_on_the_batch_size(runs, capsys):
  model = str(runs['lstm'][0] / 'model')
  texts = text_samples.write(model, ['The', ''], DrawSettings(num_images=3, seed=1))
  assert [len(samples) for samples in texts] == [3, 3] and all(text.startswith('The') for text in texts[0])
  assert text_samples.write(model, ['The', ''], DrawSettings(num_images=3, seed=1, batch_size=1)) == texts
  *others, long_texts = text_samples.write(
    model, ['The', '', 'a long prompt ' * 30], DrawSettings(num_images=3, seed=2)
  )
  assert others != texts and len(long_texts[0]) > 8
  assert len(set(text_samples.write(model, ['The'], DrawSettings(num_images=2, seed=1, temperature=0.0))[0])) == 1
  text_samples.show(['The', ''], texts)
  assert capsys.readouterr().out.count("---- prompt 0 ('The'), text") == 3


def test_generate_rejects_models_of_the_wrong_kind_and_values_out_of_range(runs, tmp_path):
  model = str(runs['ngram'][0] / 'model')
  with pytest.raises(ValueError, match='holds a model of text, but this needs a model of images'):
    draw(model, ['a red circle'], DrawSettings(num_images=1), out=str(tmp_path))
  with pytest.raises(ValueError, match=r'--top_k is 1000; the model has 400 tokens'):
    text_samples.write(model, [''], DrawSettings(num_images=1, seed=0, top_k=1000))
  with pytest.raises(ValueError, match='--seed is -1'):
    text_samples.write(model, [''], DrawSettings(num_images=1, seed=-1))


def test_a_text_shorter_than_one_window_is_rejected_before_training(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'too short')
  config = _config('lstm', data={'source': 'text', 'path': str(tmp_path / 'a.txt'), 'validation_fraction': 0.0})
  with pytest.raises(ValueError, match=r'tokens, fewer than the 16 of one sequence \(config\.model\.length\)'):
    run.run(config, str(tmp_path / 'run'))
