"""Trains a tiny reranker from end to end, then loads and uses it."""

import json
import pathlib
import runpy

import numpy as np
import pytest
from random_models import PICTURES, caption_tokenizer, save_random

from dalle_jax import bundle
from dalle_jax.config import Config, MeshConfig
from dalle_jax.jobs import ranker as module
from dalle_jax.jobs.train import run
from dalle_jax.sharding import make_mesh

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
CAPTIONS = ['a red circle', 'a blue square above a green circle']


def _config(root, **changes):
  values = runpy.run_path(str(CONFIGS / 'reranker.py'))['get_config']('tiny').to_dict()
  values['data'] |= {'data_dir': str(root / 'data'), 'num_threads': 1}
  values['reranker_training'] |= {'optimizer': 'adamw'}  # AdamW's step compiles faster than Muon's.
  return Config.from_dict(values | changes)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def finished(root):
  return root / 'reranker', run.run(_config(root), str(root / 'reranker'))


@pytest.fixture(scope='module')
def ranker(finished):
  return module.load(str(finished[0] / 'model'), make_mesh(MeshConfig()), batch_size=4)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)


def test_training_writes_a_model_scores_retrieval_sheets_and_a_report(finished):
  workdir, scores = finished
  assert bundle.check(workdir / 'model', needs=('reranker',))['parts'] == ['reranker']
  for split in ('validation', 'held_out'):
    assert scores[f'retrieval/{split}/num_captions'] == 32
    assert scores[f'contrast/{split}/two_objects/num_captions'] == 4
    top_1, top_5 = (scores[f'retrieval/{split}/text_to_image_top_{k}'] for k in (1, 5))
    assert 0 <= top_1 <= top_5 <= 1
    assert (workdir / f'found_{split}.png').exists()
  assert scores['reranker/logit_scale'] == pytest.approx(1 / 0.07, rel=0.1)
  assert json.loads((workdir / 'scores.json').read_text()) == pytest.approx(scores)
  report = (workdir / 'report.html').read_text()
  assert 'text_to_image_top_1' in report and 'differs in a single attribute' in report


def test_a_finished_run_is_not_trained_again(finished, root):
  workdir, _ = finished
  before = (workdir / 'reranker' / 'metrics.jsonl').read_bytes()
  again = run.run(_config(root), str(workdir), stop_after='reranker')
  assert again == {}
  assert (workdir / 'reranker' / 'metrics.jsonl').read_bytes() == before


def test_scores_are_cosines_of_each_prompt_with_its_own_images(ranker, images):
  grouped = images.reshape(2, 3, 32, 32, 3)
  scores = ranker.scores(CAPTIONS, grouped)
  assert scores.shape == (2, 3) and scores.dtype == np.float32
  text_embeddings, image_embeddings = ranker.text_embeddings(CAPTIONS), ranker.image_embeddings(images)
  np.testing.assert_allclose(np.linalg.norm(image_embeddings, axis=1), 1, atol=1e-5)
  expected = [[text_embeddings[p] @ image_embeddings[3 * p + n] for n in range(3)] for p in range(2)]
  np.testing.assert_allclose(scores, expected, atol=1e-6)
  assert ranker.image_features(images).shape == (6, 32)


def test_embeddings_do_not_depend_on_the_other_rows_of_the_batch(ranker, images):
  all_embeddings = ranker.image_embeddings(images)
  np.testing.assert_array_equal(all_embeddings[5:], ranker.image_embeddings(images[5:]))
  np.testing.assert_array_equal(ranker.text_embeddings(CAPTIONS)[1:], ranker.text_embeddings(CAPTIONS[1:]))


def test_images_of_any_size_can_be_embedded(ranker, images):
  large = images[:2].repeat(2, axis=1).repeat(2, axis=2)
  np.testing.assert_allclose(ranker.image_embeddings(large), ranker.image_embeddings(images[:2]), atol=0.1)
  assert ranker.image_embeddings(large[:, :, :50]).shape == ranker.image_embeddings(images[:2]).shape


def test_a_long_prompt_is_truncated_with_a_warning_and_an_empty_prompt_is_rejected(ranker, caplog):
  long_prompt = ' '.join(['red'] * 40)
  embeddings = ranker.text_embeddings([long_prompt, long_prompt + ' blue'])
  np.testing.assert_array_equal(embeddings[0], embeddings[1])
  assert 'reads only the first 19 tokens' in caplog.text
  with pytest.raises(ValueError, match='empty'):
    ranker.text_embeddings(['a red circle', ' '])


def test_other_models_are_rejected_with_the_command_that_trains_a_reranker(finished, tmp_path):
  mesh, train = make_mesh(MeshConfig()), 'python -m dalle_jax.train --config=configs/reranker.py'
  with pytest.raises(ValueError, match=rf'nowhere \(--reranker\).*{train}'):
    module.load(str(tmp_path / 'nowhere'), mesh)
  pictures = save_random(tmp_path / 'model', Config.from_dict(PICTURES), caption_tokenizer())
  with pytest.raises(ValueError, match=rf'\(--best_of\) holds a model of images.* needs a reranker: {train}'):
    module.load(pictures, mesh, flag='--best_of')
  with pytest.raises(ValueError, match=r'\(--model\) holds a reranker, but this needs a model of images'):
    bundle.check(finished[0] / 'model')
