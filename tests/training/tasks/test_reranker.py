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
  """The first two captions are equal, and the last wrong caption equals the right one."""
  batch = captioned_batch(20)
  batch['text'][1] = batch['text'][0]
  wrong = batch['text'][:, ::-1].copy()
  wrong[3] = batch['text'][3]
  return batch | {'wrong': wrong}


def test_wrong_captions_are_negatives_for_images_only(params, batch):
  value, metrics = jax.jit(TASK.loss)(params, batch, jax.random.key(0), jnp.asarray(0))
  texts = np.concatenate([batch['text'], batch['wrong']])
  image_embeddings, text_embeddings, scale = jax.jit(lambda p, *x: TASK.model.apply({'params': p}, *x))(
    params['reranker'], batch['image'], texts
  )
  scores = np.asarray(scale) * np.asarray(image_embeddings) @ np.asarray(text_embeddings).T

  def loss(logits, captions, choices):
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    positives = np.array([[np.array_equal(caption, choice) for choice in choices] for caption in captions])
    return -np.mean([row[mask].mean() for row, mask in zip(log_probs, positives, strict=True)])

  count = len(batch['text'])
  expected = loss(scores, batch['text'], texts), loss(scores[:, :count].T, batch['text'], batch['text'])
  assert value == pytest.approx(np.mean(expected), rel=1e-4)
  assert metrics['logit_scale'] == pytest.approx(np.exp(float(params['reranker']['logit_scale'])), rel=1e-5)
  without_wrong = {name: value for name, value in batch.items() if name != 'wrong'}
  evaluated = jax.jit(TASK.evaluate)(params, without_wrong, jax.random.key(0), jnp.asarray(0))
  expected = loss(scores[:, :count], batch['text'], batch['text']), expected[1]
  assert evaluated['loss'] == pytest.approx(np.mean(expected), rel=1e-4)
  assert set(TASK.summarize(jax.device_get(evaluated))) == {'loss', *metrics}


def test_a_perfect_model_has_accuracy_1_and_loss_0():
  scores, positives = jnp.eye(4) * 100, jnp.eye(4, dtype=bool)
  assert reranker.accuracies(scores, positives) == (1.0, 1.0)
  assert max(reranker.contrastive_losses(scores, positives)) < 1e-6
