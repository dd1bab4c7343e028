"""Tests the sequence-model interface for all models over a single vocabulary, alone and restricted to streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.models.attention import Pattern
from dalle_jax.models.language import TransformerLanguageModel
from dalle_jax.models.neural_ngram import NeuralNgram
from dalle_jax.models.recurrent import Recurrent
from dalle_jax.models.stream import StreamModel
from dalle_jax.models.transformer import BlockShape, Transformer

VOCAB, LENGTH = 7, 9


def _transformer(**options):
  shape = BlockShape(num_layers=2, embed_dim=8, num_heads=2, init_scale=1.0, **options)
  return TransformerLanguageModel(VOCAB, Transformer(shape, (Pattern('full', LENGTH, 0),)))


MODELS = {
  'neural_ngram': NeuralNgram(VOCAB, LENGTH, 4, 5, 6),
  'neural_bigram': NeuralNgram(VOCAB, LENGTH, 2, 5, 6),
  'rnn': Recurrent('rnn', VOCAB, LENGTH, 2, 5, 6),
  'lstm': Recurrent('lstm', VOCAB, LENGTH, 2, 5, 6),
  'transformer': _transformer(),
  'rotary': _transformer(rotary=True, norm='rmsnorm', mlp='swiglu', qk_norm=True),
}
# 'text and image': 5 text slots with 3 ids, then 4 image slots with 4 ids. 'image': 9 image slots with 7 ids.
STREAMS = {
  f'{name}, {kind}': StreamModel(MODELS[name], *layout)
  for name in ('neural_ngram', 'lstm', 'transformer')
  for kind, layout in {'text and image': (3, 4, 5, 2), 'image': (0, VOCAB, 0, 3)}.items()
}
MODELS |= STREAMS


@pytest.fixture(scope='module', params=MODELS, ids=str)
def model(request):
  return MODELS[request.param]


@pytest.fixture(scope='module')
def params(model):
  """Parameters with random entries. Initial output matrices are zero, which would hide mistakes."""
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
  return jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope='module')
def logits_of(model):
  return jax.jit(model.logits)


def _finite(logits):
  """Clip the logits at -100, because -inf cannot be subtracted."""
  return np.maximum(np.asarray(logits), -100)


@pytest.fixture(scope='module')
def tokens():
  return jnp.asarray(np.random.default_rng(1).integers(0, VOCAB, (3, LENGTH)), jnp.int32)


def test_prefill_and_steps_equal_the_logits_of_the_whole_sequence(model, params, tokens, logits_of):
  logits = np.asarray(logits_of(params, tokens))
  assert logits.shape == (3, LENGTH, VOCAB) and logits.dtype == np.float32
  decode_params = jax.jit(model.decode_params)(params)
  prefill, step = jax.jit(model.prefill), jax.jit(model.step)
  for start in (0, 1, 5):
    cache, next_logits = prefill(decode_params, tokens[:, :start])
    np.testing.assert_allclose(next_logits, logits[:, start], atol=2e-5)
    for t in range(start, LENGTH - 1):
      cache, next_logits = step(decode_params, cache, tokens[:, t])
      np.testing.assert_allclose(next_logits, logits[:, t + 1], atol=2e-5)


def test_logits_do_not_depend_on_the_predicted_or_later_tokens(model, params, tokens, logits_of):
  logits = _finite(logits_of(params, tokens))
  changed = _finite(logits_of(params, tokens.at[:, 4].set((tokens[:, 4] + 1) % VOCAB)))
  np.testing.assert_array_equal(logits[:, :5], changed[:, :5])
  memory = getattr(getattr(model, 'inner', model), 'order', LENGTH) - 1
  if memory:
    assert np.abs(logits[:, 5] - changed[:, 5]).max() > 1e-3
  np.testing.assert_array_equal(logits[:, 5 + memory :], changed[:, 5 + memory :])


def test_initial_model_is_uniform_and_names_the_axes_of_its_parameters(model, tokens, logits_of):
  boxed = jax.jit(model.init)(jax.random.key(0))
  logits = logits_of(nn.unbox(boxed), tokens)
  possible = np.isfinite(logits)
  assert possible.all() == (getattr(model, 'text_length', 0) == 0) and possible.any(-1).all()
  expected = np.where(possible, 1 / possible.sum(-1, keepdims=True), 0)
  np.testing.assert_allclose(jax.nn.softmax(logits), expected, rtol=1e-5)
  specs = nn.get_partition_spec(boxed)
  for path, leaf in jax.tree_util.tree_leaves_with_path(nn.unbox(boxed)):
    spec = specs
    for key in path:
      spec = spec[key.key]
    assert leaf.ndim < 2 or any(spec), jax.tree_util.keystr(path)


def test_bfloat16_model_has_close_float32_logits(tokens):
  for full, half in [
    (MODELS['lstm'], Recurrent('lstm', VOCAB, LENGTH, 2, 5, 6, jnp.bfloat16)),
    (MODELS['neural_ngram'], NeuralNgram(VOCAB, LENGTH, 4, 5, 6, jnp.bfloat16)),
    (MODELS['transformer'], _transformer(dtype=jnp.bfloat16)),
  ]:
    rng = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(full.init, jax.random.key(0)))
    params = jax.tree.map(lambda leaf, rng=rng: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    logits = jax.jit(half.logits)(params, tokens)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, jax.jit(full.logits)(params, tokens), atol=0.1)
