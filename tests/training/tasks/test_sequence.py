import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dalle_jax.config import Config
from dalle_jax.models import prior
from dalle_jax.training.tasks.codes import encode
from dalle_jax.training.tasks.sequence import ImageTokensTask, SequenceTask
from dalle_jax.training.tasks.sequence import make_task as make_sequence_task

VOCAB = 11
STEP = jnp.asarray(3)


def _task(kind):
  values = {
    'task': 'sequence',
    'data': {'source': 'text'},
    'tokenizer': {'kind': 'bytes'},
    'model': {
      'kind': kind,
      'length': 6,
      'order': 3,
      'num_layers': 1,
      'num_heads': 2,
      'embed_dim': 8,
      'hidden_size': 12,
    },
  }
  return SequenceTask(Config.from_dict(values), VOCAB)


@pytest.fixture(scope='module')
def batch():
  return {'tokens': jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (4, 6)), jnp.int32)}


@pytest.mark.parametrize('kind', ['neural_ngram', 'rnn', 'lstm', 'transformer'])
def test_training_overfits_one_batch(kind, batch, random_params):
  task = _task(kind)
  params = random_params(task, 0.3)
  tx = optax.adam(0.03)
  opt = tx.init(params)

  @jax.jit
  def step(params, opt):
    (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch, jax.random.key(0), STEP)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(params, updates), opt, loss

  losses = []
  for _ in range(150):
    params, opt, loss = step(params, opt)
    losses.append(float(loss))
  # The loss cannot reach 0: the four rows differ in their first token, which is unpredictable.
  assert losses[0] > 2 and losses[-1] < 0.5


def test_loss_and_metrics_are_the_mean_cross_entropy(batch, random_params):
  task = _task('lstm')
  params = random_params(task, 0.5)
  loss, metrics = jax.jit(task.loss)(params, batch, jax.random.key(0), STEP)
  logits = np.asarray(jax.jit(task.model.logits)(params['model'], batch['tokens']), np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = -np.take_along_axis(log_probs, np.asarray(batch['tokens'])[..., None], -1).mean()
  assert float(loss) == pytest.approx(expected, rel=1e-5) == pytest.approx(float(metrics['nats_per_token']))
  summary = task.summarize(jax.device_get(jax.jit(task.evaluate)(params, batch, jax.random.key(0), STEP)))
  assert summary['loss'] == summary['nats_per_token'] == pytest.approx(expected, rel=1e-5)
  assert summary['bits_per_token'] == pytest.approx(expected / np.log(2), rel=1e-5)
  assert summary['perplexity'] == pytest.approx(np.exp(expected), rel=1e-4)


def _image_task(tokens):
  values = {
    'task': 'sequence',
    'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
    'tokenizer': {'text_length': 5},
    'dvae': {
      'pretrained': 'unused', 'image_vocab_size': 16, 'hidden_size': 4, 'decoder_input_size': 4, 'num_groups': 2,
      'blocks_per_group': 1,
    },
    'model': {'kind': 'lstm', 'tokens': tokens, 'num_layers': 1, 'embed_dim': 8, 'hidden_size': 12},
  }  # fmt: skip
  task = make_sequence_task(Config.from_dict(values), VOCAB)
  assert isinstance(task, ImageTokensTask) and type(_task('lstm')) is type(make_sequence_task(_task('lstm').config, 1))
  return task


def test_metrics_of_captions_of_codes_and_of_both(captioned_batch, random_params):
  task, batch = _image_task('text_image'), captioned_batch(VOCAB)
  params = random_params(task, 0.4)
  loss, metrics = jax.jit(task.loss)(params, batch, jax.random.key(0), STEP)
  codes = jax.jit(functools.partial(encode, task.config))(params, batch['image'])
  assert len(np.unique(codes)) > 3
  tokens = task.model.stream(jnp.asarray(batch['text']), codes)
  # Select the text and image logits from the shared vocabulary, as `prior.losses` expects them.
  logits = jax.jit(task.model.inner.logits)(params['model'], tokens)
  text_logits = logits[:, :5, :VOCAB].at[:, 4, 1:].set(-jnp.inf)  # the last text token is always a pad
  expected = prior.losses(text_logits, logits[:, 5:, VOCAB:], jnp.asarray(batch['text']), codes)
  num_text, num_image = 3 + 3 * 5, 4 * 16  # the first caption: two tokens and a pad
  mean = (num_text * expected['text'] + num_image * expected['image']) / (num_text + num_image)
  assert float(metrics['text_nats_per_token']) == pytest.approx(float(expected['text']), rel=1e-5)
  assert float(metrics['image_nats_per_token']) == pytest.approx(float(expected['image']), rel=1e-5)
  assert float(loss) == pytest.approx(float(mean), rel=1e-5)
  summary = task.summarize(jax.device_get(jax.jit(task.evaluate)(params, batch, jax.random.key(0), STEP)))
  assert summary['loss'] == pytest.approx(float(mean), rel=1e-5) and 'image_nats_per_token' in summary


def test_image_only_batches_need_no_captions_and_do_not_train_the_dvae(captioned_batch, random_params):
  task = _image_task('image')
  batch = {'image': captioned_batch(VOCAB)['image']}
  params = random_params(task, 0.4)
  grads, metrics = jax.jit(jax.grad(task.loss, has_aux=True))(params, batch, jax.random.key(0), STEP)
  assert set(metrics) == {'nats_per_token'} and task.trainable == ('model',)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads['dvae']))
  assert any((leaf != 0).any() for leaf in jax.tree.leaves(grads['model']))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
