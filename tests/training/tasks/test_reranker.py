import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.config import Config
from dalle_jax.models import reranker
from dalle_jax.training.tasks.reranker import RerankerTask

CONFIG = Config.from_dict({
  'task': 'reranker',
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
  'tokenizer': {'text_length': 5},
  'reranker': {
    'embed_dim': 8, 'image_num_layers': 1, 'image_width': 8, 'image_num_heads': 2, 'text_num_layers': 1,
    'text_width': 8, 'text_num_heads': 2,
  },
})  # fmt: skip
TASK = RerankerTask(CONFIG, 20)


@pytest.fixture(scope='module')
def params(random_params):
  return random_params(TASK, 0.4)


@pytest.fixture(scope='module')
def batch(captioned_batch):
  """The first caption twice, and wrong ones, of which one is no other."""
  batch = captioned_batch(20)
  batch['text'][1] = batch['text'][0]
  wrong = batch['text'][:, ::-1].copy()
  wrong[3] = batch['text'][3]
  return batch | {'wrong': wrong}


def test_wrong_captions_are_negatives_of_images_alone(params, batch):
  value, metrics = jax.jit(TASK.loss)(params, batch, jax.random.key(0), jnp.asarray(0))
  texts = np.concatenate([batch['text'], batch['wrong']])
  images, embedded, scale = jax.jit(lambda p, *x: TASK.model.apply({'params': p}, *x))(
    params['reranker'], batch['image'], texts
  )
  scores = np.asarray(scale) * np.asarray(images) @ np.asarray(embedded).T

  def loss(rows, names, choices):
    logs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    right = np.array([[np.array_equal(name, choice) for choice in choices] for name in names])
    return -np.mean([row[mask].mean() for row, mask in zip(logs, right, strict=True)])

  count = len(batch['text'])
  expected = loss(scores, batch['text'], texts), loss(scores[:, :count].T, batch['text'], batch['text'])
  assert value == pytest.approx(np.mean(expected), rel=1e-4)
  assert metrics['logit_scale'] == pytest.approx(np.exp(float(params['reranker']['logit_scale'])), rel=1e-5)
  plain = {name: value for name, value in batch.items() if name != 'wrong'}
  evaluated = jax.jit(TASK.evaluate)(params, plain, jax.random.key(0), jnp.asarray(0))
  expected = loss(scores[:, :count], batch['text'], batch['text']), expected[1]
  assert evaluated['loss'] == pytest.approx(np.mean(expected), rel=1e-4)
  assert set(TASK.summarize(jax.device_get(evaluated))) == {'loss', *metrics}


def test_accuracies_and_loss_of_a_perfect_model():
  scores, right = jnp.eye(4) * 100, jnp.eye(4, dtype=bool)
  assert reranker.accuracies(scores, right) == (1.0, 1.0)
  assert max(reranker.contrastive_losses(scores, right)) < 1e-6
