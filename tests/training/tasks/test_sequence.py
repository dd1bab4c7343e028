import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dalle_jax.config import Config
from dalle_jax.training.tasks.sequence import SequenceTask

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
def test_it_learns_one_batch_by_heart(kind, batch, random_params):
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
  # The four rows differ in their first token, which nothing tells.
  assert losses[0] > 2 and losses[-1] < 0.5


def test_loss_and_figures_are_the_mean_cross_entropy(batch, random_params):
  task = _task('lstm')
  params = random_params(task, 0.5)
  loss, metrics = task.loss(params, batch, jax.random.key(0), STEP)
  logits = np.asarray(task.model.logits(params['model'], batch['tokens']), np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = -np.take_along_axis(log_probs, np.asarray(batch['tokens'])[..., None], -1).mean()
  assert float(loss) == pytest.approx(expected, rel=1e-5) == pytest.approx(float(metrics['nats_per_token']))
  summary = task.summarize(jax.device_get(task.evaluate(params, batch, jax.random.key(0), STEP)))
  assert summary['loss'] == summary['nats_per_token'] == pytest.approx(expected, rel=1e-5)
  assert summary['bits_per_token'] == pytest.approx(expected / np.log(2), rel=1e-5)
  assert summary['perplexity'] == pytest.approx(np.exp(expected), rel=1e-4)
