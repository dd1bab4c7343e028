import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.config import Config, MeshConfig, TrainingConfig
from dalle_jax.models import bottleneck, likelihood
from dalle_jax.models import prior as prior_model
from dalle_jax.sharding import make_mesh, to_global, use_mesh
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import create_state
from dalle_jax.training.step import make_train_step
from dalle_jax.training.tasks.joint import JointTask

TEXT, IMAGE = 20, 6
CONFIG = Config.from_dict({
  'task': 'joint',
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
  'tokenizer': {'text_length': 5},
  'dvae': {
    'image_vocab_size': IMAGE, 'hidden_size': 8, 'decoder_input_size': 4, 'num_groups': 2, 'blocks_per_group': 1,
    'kl_weight': 0.3, 'kl_warmup_steps': 4, 'min_log_scale': -3.0,
  },
  'prior': {'num_layers': 1, 'num_heads': 2, 'embed_dim': 16},
})  # fmt: skip
TASK = JointTask(CONFIG, TEXT)
APPLY = jax.jit(TASK.dvae.apply, static_argnames='method')
SPLIT_LOGITS = jax.jit(TASK.model.split_logits)
LOSS, EVALUATE = jax.jit(TASK.loss), jax.jit(TASK.evaluate)
STEP = jnp.asarray(9)  # past the warm-up


@pytest.fixture(scope='module')
def params(random_params):
  return random_params(TASK, 0.4)


@pytest.fixture(scope='module')
def batch(captioned_batch):
  return captioned_batch(TEXT)


def _with(params, **embeddings):
  return {**params, 'prior': {**params['prior'], 'embeddings': {**params['prior']['embeddings'], **embeddings}}}


def test_with_a_uniform_prior_the_loss_is_that_of_stage_1_plus_the_caption_nll(params, batch):
  uniform = {name: jnp.zeros_like(params['prior']['embeddings'][name]) for name in ('text_kernel', 'image_kernel')}
  value, metrics = LOSS(_with(params, **uniform), batch, jax.random.key(3), STEP)
  stage_1_loss, _ = jax.jit(TASK.dvae.loss)({'dvae': params['dvae']}, batch, jax.random.key(3), STEP)
  num_tokens = np.minimum((batch['text'] != 0).sum(1) + 1, 5)
  text = num_tokens.mean() * np.log(TEXT)
  assert metrics['text_nats'] == pytest.approx(text, rel=1e-5)
  assert metrics['kl_per_position'] == pytest.approx(float(metrics['kl_to_uniform']), rel=1e-4)
  assert value == pytest.approx(float(stage_1_loss) + 0.3 * text / 16, rel=1e-5)


def test_with_a_deterministic_encoder_the_kl_is_the_cross_entropy_of_the_prior(params, batch):
  certain = jax.tree.map(lambda x: x, params)
  output = params['dvae']['encoder']['output']
  certain['dvae']['encoder']['output'] = jax.tree.map(lambda x: 1e4 * x, output)
  _, metrics = LOSS(certain, batch, jax.random.key(3), STEP)
  codes = APPLY(certain, batch['image'], method='encode').reshape(4, -1)
  logits = SPLIT_LOGITS(certain['prior'], batch['text'], codes)
  losses = prior_model.losses(*logits, jnp.asarray(batch['text']), codes)
  assert metrics['kl_per_position'] == pytest.approx(float(losses['image']), rel=1e-4)


def test_the_kl_given_the_sampled_codes_is_exact(params, batch):
  key = jax.random.key(3)
  _, metrics = LOSS(params, batch, key, STEP)
  z = APPLY(params, batch['image'], method='encode_latents')
  sample = bottleneck.gumbel_softmax(z, key, TASK.dvae.temperature(STEP)).argmax(-1).reshape(4, -1)
  _, image_logits = SPLIT_LOGITS(params['prior'], batch['text'], sample)
  q = np.float64(jax.nn.softmax(z)).reshape(4, 16, IMAGE)
  kl = np.sum(q * (np.log(q) - np.float64(jax.nn.log_softmax(image_logits))), axis=-1)
  assert metrics['kl_per_position'] == pytest.approx(kl.mean(), rel=1e-4)


def test_gradients_reach_both_models_and_the_prior_affects_the_encoder(params, batch):
  grad = jax.jit(jax.grad(lambda p: TASK.loss(p, batch, jax.random.key(0), STEP)[0]))
  grads = grad(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(leaf)) and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
  kernel = params['prior']['embeddings']['image_kernel']
  other = grad(_with(params, image_kernel=-kernel))
  encoder_grads = [g['dvae']['encoder']['input']['kernel'] for g in (grads, other)]
  assert np.abs(encoder_grads[0] - encoder_grads[1]).max() > 1e-6


def test_the_summary_includes_the_caption_nll(params, batch):
  means = jax.device_get(EVALUATE(params, batch, jax.random.key(0), STEP))
  summary = TASK.summarize(means)
  expected = summary['nll_sampled'] + 0.3 * (summary['kl_per_position'] + summary['text_nats'] / 16)
  assert summary['loss'] == pytest.approx(expected, rel=1e-5)
  assert summary['image_nats_per_token'] > 0


def test_the_bound_pairs_the_distortion_and_the_kl_of_the_same_sampled_codes(params, batch):
  key = jax.random.key(5)
  means = jax.device_get(EVALUATE(params, batch, key, STEP))
  z = APPLY(params, batch['image'], method='encode_latents')
  sample = jax.random.categorical(key, z)
  stats = APPLY(params, sample, method='decode_stats')
  distortion = float(likelihood.pixel_nll(batch['image'], stats, -3.0).mean())
  _, image_logits = SPLIT_LOGITS(params['prior'], batch['text'], sample.reshape(4, -1))
  q = np.float64(jax.nn.softmax(z)).reshape(4, 16, IMAGE)
  kl = np.mean(np.sum(q * (np.log(q) - np.float64(jax.nn.log_softmax(image_logits))), axis=-1))
  assert TASK.summarize(means)['bits_per_dim'] == pytest.approx((distortion + kl * 16 / 192) / np.log(2), rel=1e-4)


def test_training_both_models_lowers_the_loss(params, batch):
  training = TrainingConfig(learning_rate=1e-2, warmup_steps=0, schedule='constant', num_steps=40, ema_decay=0.0)
  mesh = make_mesh(MeshConfig())
  with use_mesh(mesh):
    tx = make_optimizer(training)
    state = create_state(TASK, tx, mesh, 0, use_ema=False, initial=params)
    assert set(state.params) == {'dvae', 'prior'}
    step, losses = make_train_step(TASK, tx, training, mesh, seed=0), []
    for _ in range(training.num_steps):
      state, metrics = step(state, to_global(batch, mesh))
      losses.append(float(metrics['loss']))
  assert np.mean(losses[-5:]) < losses[5] - 0.2
