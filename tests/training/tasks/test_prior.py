import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.config import Config, MeshConfig, TrainingConfig
from dalle_jax.factory import make_dvae
from dalle_jax.models import prior as prior_model
from dalle_jax.sharding import make_mesh, to_global, use_mesh
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import create_state
from dalle_jax.training.step import make_train_step
from dalle_jax.training.tasks.codes import encode
from dalle_jax.training.tasks.prior import PriorTask

TEXT, IMAGE = 20, 16
CONFIG = Config.from_dict({
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
  'tokenizer': {'text_length': 5},
  'dvae': {
    'image_vocab_size': IMAGE, 'hidden_size': 4, 'decoder_input_size': 4, 'num_groups': 2, 'blocks_per_group': 1,
  },
  'prior': {'num_layers': 2, 'num_heads': 2, 'embed_dim': 16, 'text_loss_weight': 0.25, 'image_loss_weight': 0.5},
})  # fmt: skip
TASK = PriorTask(CONFIG, TEXT)


@pytest.fixture(scope='module')
def params(random_params):
  return random_params(TASK, 0.4)


@pytest.fixture(scope='module')
def batch(captioned_batch):
  return captioned_batch(TEXT)


@pytest.fixture(scope='module')
def codes(params, batch):
  return jax.jit(functools.partial(encode, CONFIG))(params, batch['image'])


def test_codes_are_the_likeliest_ones_in_raster_order(params, batch, codes):
  grid = jax.jit(lambda p, x: make_dvae(CONFIG.dvae).apply({'params': p['dvae']}, x, method='encode'))
  np.testing.assert_array_equal(np.asarray(codes).reshape(4, 4, 4), grid(params, batch['image']))
  assert len(np.unique(codes)) > 3


def test_the_loss_is_the_weighted_sum_of_text_and_image_losses(params, batch, codes):
  value, metrics = jax.jit(TASK.loss)(params, batch, jax.random.key(0), jnp.asarray(0))
  logits = jax.jit(TASK.model.split_logits)(params['prior'], batch['text'], codes)
  losses = prior_model.losses(*logits, jnp.asarray(batch['text']), codes)
  text, image = losses['text'], losses['image']
  assert value == pytest.approx(float(0.25 * text + 0.5 * image), rel=1e-5)
  expected = {'text_nats_per_token': float(text), 'image_nats_per_token': float(image)}
  assert jax.device_get(metrics) == pytest.approx(expected, rel=1e-5)
  evaluated = jax.jit(TASK.evaluate)(params, batch, jax.random.key(1), jnp.asarray(9))
  assert jax.device_get(evaluated) == pytest.approx({**expected, 'loss': float(value)}, rel=1e-5)


def _with(**keys):
  values = CONFIG.to_dict()
  return PriorTask(Config.from_dict({**values, 'prior': {**values['prior'], **keys}}), TEXT)


def test_the_z_loss_is_added_only_in_training(params, batch, codes):
  task, key, step = _with(z_loss_weight=0.1), jax.random.key(0), jnp.asarray(0)
  value, metrics = jax.jit(task.loss)(params, batch, key, step)
  plain, _ = jax.jit(TASK.loss)(params, batch, key, step)
  text_logits, image_logits = jax.jit(TASK.model.split_logits)(params['prior'], batch['text'], codes)
  counted = np.pad(batch['text'] != 0, ((0, 0), (1, 0)), constant_values=True)
  text_z = np.mean(np.log(np.exp(np.float64(text_logits)).sum(-1))[counted] ** 2)
  image_z = np.mean(np.log(np.exp(np.float64(image_logits)).sum(-1)) ** 2)
  assert metrics['z_loss'] == pytest.approx(0.25 * text_z + 0.5 * image_z, rel=1e-4)
  assert value == pytest.approx(float(plain + 0.1 * metrics['z_loss']), rel=1e-5)
  assert jax.jit(task.evaluate)(params, batch, key, step)['loss'] == pytest.approx(float(plain), rel=1e-5)


def test_dropped_captions_are_read_as_pads_and_have_no_text_loss(params, batch):
  task, step = _with(caption_drop=0.5), jnp.asarray(0)
  key = next(k for k in map(jax.random.key, range(99)) if np.array_equal(_captioned(k), [True, False, False, True]))
  _, metrics = jax.jit(task.loss)(params, batch, key, step)
  padded = {**batch, 'text': np.where(_captioned(key)[:, None], batch['text'], 0)}
  as_pads = jax.jit(TASK.evaluate)(params, padded, key, step)
  assert metrics['image_nats_per_token'] == pytest.approx(float(as_pads['image_nats_per_token']), rel=1e-5)
  captioned = jax.jit(TASK.evaluate)(params, jax.tree.map(lambda x: x[[0, 3]], batch), key, step)
  assert metrics['text_nats_per_token'] == pytest.approx(float(captioned['text_nats_per_token']), rel=1e-5)
  assert jax.jit(task.evaluate)(params, batch, key, step) == jax.jit(TASK.evaluate)(params, batch, key, step)


def _captioned(key):
  """Which captions of a batch of 4 are kept."""
  return np.asarray(prior_model.drop_captions(key, jnp.ones((4, 4), jnp.int32), 0.5)[1])


def test_gradients_reach_only_the_prior(params, batch):
  grads = jax.jit(jax.grad(lambda p: TASK.loss(p, batch, jax.random.key(0), jnp.asarray(0))[0]))(params)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads['dvae']))
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads['prior']):
    assert np.all(np.isfinite(leaf)) and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_the_summary_in_closed_form():
  means = {'loss': np.array(1.5), 'text_nats_per_token': np.array(2.0), 'image_nats_per_token': np.array(3.0)}
  bits = 3 / np.log(2) * 16 / (3 * 8 * 8)
  assert TASK.summarize(means) == pytest.approx(
    {'loss': 0.25 * 2 + 0.5 * 3, 'text_nats_per_token': 2, 'image_nats_per_token': 3, 'image_bits_per_dim': bits}
  )


def test_training_overfits_one_batch_and_does_not_change_the_dvae(params, batch):
  training = TrainingConfig(learning_rate=1e-2, warmup_steps=0, schedule='constant', num_steps=60, ema_decay=0.0)
  mesh = make_mesh(MeshConfig())
  with use_mesh(mesh):
    tx = make_optimizer(training)
    state = create_state(TASK, tx, mesh, 0, use_ema=False, initial={'dvae': params['dvae']})
    assert set(state.params) == {'prior'}
    step = make_train_step(TASK, tx, training, mesh, seed=0)
    metrics = []
    for _ in range(training.num_steps):
      state, latest = step(state, to_global(batch, mesh))
      metrics.append(latest)
  first, last = metrics[0], metrics[-1]
  # The initial model is uniform. The final losses need both text and codes as input.
  assert first['text_nats_per_token'] == pytest.approx(np.log(TEXT), rel=1e-4)
  assert first['image_nats_per_token'] == pytest.approx(np.log(IMAGE), rel=1e-4)
  assert last['image_nats_per_token'] < first['image_nats_per_token'] / 5
  assert last['text_nats_per_token'] < first['text_nats_per_token'] / 3
  jax.tree.map(np.testing.assert_array_equal, state.frozen['dvae'], params['dvae'])
