"""Gradient accumulation and evaluation over batches that count different numbers of tokens equal one large batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dalle_jax.config import Config, MeshConfig, TrainingConfig
from dalle_jax.sharding import make_mesh, to_global, use_mesh
from dalle_jax.training.stage_tasks import make_task
from dalle_jax.training.state import all_params, create_state
from dalle_jax.training.step import evaluate_batches, make_eval_step, make_train_step, micro_scales

VOCAB, ROWS, LENGTH = 20, 6, 4
# Metrics that are not means, so their average over micro-batches is not their value over the whole batch.
NOT_MEANS = {'psnr_relaxed', 'codebook_perplexity', 'codebook_use', 'param_norm'}
DVAE = {'image_vocab_size': 16, 'hidden_size': 4, 'decoder_input_size': 4, 'num_groups': 2, 'blocks_per_group': 1}


def _task(stage, **values):
  values = {
    'data': {'source': 'folder', 'path': 'unused', 'image_size': 8},
    'tokenizer': {'text_length': LENGTH + 1},
    'dvae': DVAE,
    'prior': {'num_layers': 1, 'num_heads': 2, 'embed_dim': 8, 'z_loss_weight': 0.01},
  } | values
  return make_task(Config.from_dict(values), stage, VOCAB)


STREAM = {
  'task': 'sequence', 'dvae': {**DVAE, 'pretrained': 'unused'},
  'model': {'kind': 'lstm', 'tokens': 'text_image', 'num_layers': 1, 'embed_dim': 8, 'hidden_size': 12},
}  # fmt: skip
EXACT = {
  'dvae': ('dvae', {'task': 'dvae', 'dvae': {**DVAE, 'bottleneck': 'fsq', 'fsq_levels': (4, 4)}}),
  'prior': ('prior', {}),
  'text_image': ('sequence', STREAM),
  'image': ('sequence', {**STREAM, 'model': {**STREAM['model'], 'tokens': 'image'}}),
}


def _batch(rows=ROWS, seed=0):
  """Captions of 0 to LENGTH tokens: each micro-batch of rows m, m + M, ... counts another number of tokens."""
  rng = np.random.default_rng(seed)
  text = rng.integers(1, VOCAB, (rows, LENGTH)).astype(np.int32)
  text[np.arange(LENGTH)[None] >= (np.arange(rows) % (LENGTH + 1))[:, None]] = 0
  return {'image': rng.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8), 'text': text}


def _fields(task, batch):
  return batch if task.name != 'dvae' and getattr(task.model, 'text_length', 1) else {'image': batch['image']}


MESH, TX = make_mesh(MeshConfig()), optax.with_extra_args_support(optax.sgd(1.0))


def _step(task, micro_batches, state):
  """Parameters and metrics after one step of plain gradient descent."""
  config = TrainingConfig(batch_size=ROWS, accumulation_steps=micro_batches, ema_decay=0.0, warmup_steps=0)
  with use_mesh(MESH):
    state = jax.tree.map(jnp.copy, state)  # the step overwrites it
    state, metrics = make_train_step(task, TX, config, MESH, 0)(state, to_global(_fields(task, _batch()), MESH))
  return jax.device_get((state.params, metrics))


@pytest.mark.parametrize('name', [
  'prior', *(pytest.param(name, marks=pytest.mark.slow) for name in EXACT if name != 'prior'),
])  # fmt: skip
def test_accumulated_gradients_and_metrics_equal_those_of_the_whole_batch(name, random_params):
  stage, values = EXACT[name]
  task = _task(stage, **values)
  state = create_state(task, TX, MESH, 0, use_ema=False, initial=random_params(task, 0.3))
  (params, metrics), (whole_params, whole_metrics) = _step(task, 3, state), _step(task, 1, state)
  for accumulated, whole in zip(jax.tree.leaves(params), jax.tree.leaves(whole_params), strict=True):
    np.testing.assert_allclose(accumulated, whole, rtol=2e-5, atol=1e-6)
  assert set(metrics) == set(whole_metrics)
  for metric in set(metrics) - NOT_MEANS:
    np.testing.assert_allclose(metrics[metric], whole_metrics[metric], rtol=2e-5, err_msg=metric)


@pytest.mark.parametrize('stage, values', [
  pytest.param('prior', {}, id='prior'),
  pytest.param('sequence', STREAM, id='text_image', marks=pytest.mark.slow),
  pytest.param('joint', {'task': 'joint'}, id='joint', marks=pytest.mark.slow),
])  # fmt: skip
def test_evaluation_over_batches_counts_each_token_once(stage, values, random_params):
  task, batch = _task(stage, **values), _batch()
  initial = random_params(task, 0.3)
  parts = [{name: rows[part] for name, rows in batch.items()} for part in (slice(0, 2), slice(2, 6))]
  with use_mesh(MESH):
    state = create_state(task, TX, MESH, 0, use_ema=False, initial=initial)
    params = all_params(state, ema=False)
    step = make_eval_step(task, MESH)
    summaries = [
      task.summarize(evaluate_batches(step, params, batches, MESH, 0, jnp.int32(0))) for batches in (parts, [batch])
    ]
  names = ['text_nats_per_token', 'image_nats_per_token'] + (['loss'] if stage != 'joint' else [])
  for name in names:  # the joint loss samples codes, with other noise for other batches
    assert summaries[0][name] == pytest.approx(summaries[1][name], rel=1e-5), name


def test_the_scales_of_a_task_that_drops_captions_count_the_captions_that_its_loss_keeps():
  task = _task('prior', prior={'num_layers': 1, 'num_heads': 2, 'embed_dim': 8, 'caption_drop': 0.5})
  batch = jax.tree.map(lambda rows: jnp.asarray(rows).reshape(3, 2, *rows.shape[1:]), _batch())
  keys = jax.random.split(jax.random.key(3), 3)
  counts = []
  for index in range(3):
    kept = np.asarray(jax.random.uniform(keys[index], (2,)) >= 0.5)
    lengths = np.minimum(np.asarray(batch['text'][index] != 0).sum(1) + 1, LENGTH + 1)
    counts.append((lengths * kept).sum())
  assert len(set(counts)) > 1
  expected = np.array(counts) / np.mean(counts)
  np.testing.assert_allclose(micro_scales(task, batch, keys)['text_nats_per_token'], expected, rtol=1e-6)


def test_the_scales_are_1_if_nothing_is_counted_and_tasks_without_weights_have_none():
  task = _task('prior', prior={'num_layers': 1, 'num_heads': 2, 'embed_dim': 8, 'caption_drop': 1.0})
  batch = jax.tree.map(lambda rows: jnp.asarray(rows).reshape(3, 2, *rows.shape[1:]), _batch())
  keys = jax.random.split(jax.random.key(3), 3)
  np.testing.assert_array_equal(micro_scales(task, batch, keys)['text_nats_per_token'], np.ones(3))
  assert micro_scales(_task(*EXACT['dvae'][:1], **EXACT['dvae'][1]), batch, keys) == {}
