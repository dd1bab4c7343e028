import pytest
from random_models import PICTURES

from dalle_jax.config import Config
from dalle_jax.jobs.evaluate import metrics
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings

FOLDER = Config.from_dict(PICTURES)
SHAPES = Config.from_dict({**PICTURES, 'data': {'image_size': 32}})
ALL_PARTS = ('dvae', 'prior')
DVAE_METRICS = ['elbo', 'reconstruction', 'codebook']


def _choose(names, config=SHAPES, parts=ALL_PARTS, **flags):
  return metrics.choose(EvaluationSettings(model='model', metrics=names, **flags), config, parts)


def test_all_chooses_every_metric_whose_needs_are_met():
  reranker = {'features': 'reranker', 'reranker': 'dir'}
  inception = {'features': 'inception', 'inception': 'file'}
  assert _choose(('all',), parts=('dvae',)) == DVAE_METRICS
  assert _choose(('all',)) == [*DVAE_METRICS, 'likelihood', 'prompt_accuracy', 'diversity']
  assert _choose(('all',), FOLDER) == [*DVAE_METRICS, 'likelihood', 'diversity']
  assert set(metrics.METRICS) - set(_choose(('all',), **reranker)) == {'inception_score'}
  assert set(metrics.METRICS) - set(_choose(('all',), **inception)) == {'clip_score'}
  assert 'prompt_accuracy' not in _choose(('all',), source='folder')


def test_named_metrics_keep_their_order_without_repetition():
  assert _choose(('codebook', 'elbo', 'codebook')) == ['codebook', 'elbo']


@pytest.mark.parametrize(
  ('names', 'changes', 'message'),
  [
    (('fid', 'nothing'), {}, r"--metrics is 'fid,nothing'; it must list one or more of elbo, .*diversity, or be all"),
    ((), {}, '--metrics'),
    (('all', 'fid'), {}, '--metrics'),
    (('fid',), {}, r'fid needs features of images: --features=reranker --reranker=DIR, or --features=inception'),
    (('kid',), {'parts': ('dvae',)}, r'kid needs a model that generates images.*; and features of images'),
    (('inception_score',), {'features': 'reranker', 'reranker': 'dir'}, 'needs --features=inception --inception=FILE'),
    (('clip_score',), {}, r'clip_score needs --reranker=DIR'),
    (
      ('prompt_accuracy',),
      {'config': FOLDER},
      'captioned_shapes, the only data with a judge .*; these data are folder',
    ),
    (('likelihood', 'diversity'), {'parts': ('dvae',)}, r'likelihood needs .*\. diversity needs '),
  ],
)
def test_errors_name_what_a_metric_lacks(names, changes, message):
  with pytest.raises(ValueError, match=message):
    _choose(names, **changes)


def test_all_leaves_out_caption_metrics_for_a_model_without_captions():
  values = {'task': 'sequence', 'model': {'tokens': 'image'}, 'data': {'image_size': 32}}
  config = Config.from_dict({**PICTURES, **values, 'dvae': {**PICTURES['dvae'], 'pretrained': 'dir'}})
  assert _choose(('all',), config, ('dvae', 'model')) == [*DVAE_METRICS, 'likelihood']


def test_too_few_images_are_refused():
  metrics.check_count(['elbo', 'fid'], 2)
  with pytest.raises(ValueError, match='--metrics=precision_recall needs at least 4 images; there are 3'):
    metrics.check_count(['fid', 'precision_recall'], 3)
