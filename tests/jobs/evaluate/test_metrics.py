import pytest
from random_models import PICTURES

from dalle_jax.config import Config
from dalle_jax.jobs.evaluate import metrics
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings

FOLDER = Config.from_dict(PICTURES)
SHAPES = Config.from_dict({**PICTURES, 'data': {'image_size': 32}})
WHOLE = ('dvae', 'prior')
OF_THE_DVAE = ['elbo', 'reconstruction', 'codebook']


def _choose(names, config=SHAPES, parts=WHOLE, **flags):
  return metrics.choose(EvaluationSettings(model='model', metrics=names, **flags), config, parts)


def test_all_are_those_that_can_be_measured():
  ours = {'features': 'reranker', 'reranker': 'dir'}
  inception = {'features': 'inception', 'inception': 'file'}
  assert _choose(('all',), parts=('dvae',)) == OF_THE_DVAE
  assert _choose(('all',)) == [*OF_THE_DVAE, 'likelihood', 'prompt_accuracy', 'diversity']
  assert _choose(('all',), FOLDER) == [*OF_THE_DVAE, 'likelihood', 'diversity']
  assert set(metrics.METRICS) - set(_choose(('all',), **ours)) == {'inception_score'}
  assert set(metrics.METRICS) - set(_choose(('all',), **inception)) == {'clip_score'}
  assert 'prompt_accuracy' not in _choose(('all',), source='folder')


def test_those_asked_for_are_measured_once_in_the_order_given():
  assert _choose(('codebook', 'elbo', 'codebook')) == ['codebook', 'elbo']


@pytest.mark.parametrize(
  ('names', 'changes', 'message'),
  [
    (('fid', 'nothing'), {}, r"--metrics is 'fid,nothing'; it must list one or more of elbo, .*diversity, or be all"),
    ((), {}, '--metrics'),
    (('all', 'fid'), {}, '--metrics'),
    (('fid',), {}, r'fid needs features of pictures: --features=reranker --reranker=DIR, or --features=inception'),
    (('kid',), {'parts': ('dvae',)}, r'kid needs a model that draws.*; and features of pictures'),
    (('inception_score',), {'features': 'reranker', 'reranker': 'dir'}, 'needs --features=inception --inception=FILE'),
    (('clip_score',), {}, r'clip_score needs --reranker=DIR'),
    (('prompt_accuracy',), {'config': FOLDER}, 'captioned_shapes, which can be judged; these data are folder'),
    (('likelihood', 'diversity'), {'parts': ('dvae',)}, r'likelihood needs .*\. diversity needs '),
  ],
)
def test_what_cannot_be_measured_is_refused_with_what_is_missing(names, changes, message):
  with pytest.raises(ValueError, match=message):
    _choose(names, **changes)


def test_drawing_without_captions_leaves_out_what_needs_them():
  values = {'task': 'sequence', 'model': {'tokens': 'image'}, 'data': {'image_size': 32}}
  config = Config.from_dict({**PICTURES, **values, 'dvae': {**PICTURES['dvae'], 'pretrained': 'dir'}})
  assert _choose(('all',), config, ('dvae', 'model')) == [*OF_THE_DVAE, 'likelihood']


def test_too_few_pictures_are_refused():
  metrics.check_count(['elbo', 'fid'], 2)
  with pytest.raises(ValueError, match='--metrics=precision_recall needs at least 4 pictures; there are 3'):
    metrics.check_count(['fid', 'precision_recall'], 3)
