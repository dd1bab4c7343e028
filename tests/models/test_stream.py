import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.models.ngram import Ngram
from dalle_jax.models.sequence import token_nll
from dalle_jax.models.stream import PAD, StreamModel
from dalle_jax.training import ngram_counts

TEXT, IMAGE, TEXT_LENGTH, GRID = 3, 2, 3, 1
LENGTH = TEXT_LENGTH + GRID**2
MODEL = StreamModel(Ngram(TEXT + IMAGE, LENGTH, 2), TEXT, IMAGE, TEXT_LENGTH, GRID)
ALONE = StreamModel(Ngram(IMAGE, 4, 2), 0, IMAGE, 0, 2)


def _table(model, smoothing='kneser_ney', corpus=None):
  """The inner model's table. The default corpus mixes all ids, so that impossible tokens have much probability."""
  rng = np.random.default_rng(0)
  corpus = rng.integers(0, model.vocab_size, (9, model.length)) if corpus is None else corpus
  levels = ngram_counts.count(corpus, model.vocab_size, model.inner.order)
  return jax.tree.map(jnp.asarray, ngram_counts.estimate(levels, smoothing=smoothing))


def _is_stream(tokens):
  text, image = tokens[:TEXT_LENGTH], tokens[TEXT_LENGTH:]
  ended = [PAD in text[:t] for t in range(TEXT_LENGTH)]
  return (
    all(token < TEXT for token in text) and all(token >= TEXT for token in image) and text[-1] == PAD
    and all(token == PAD for token, end in zip(text, ended, strict=True) if end)
  )  # fmt: skip


def test_exactly_the_valid_streams_have_positive_probability():
  tokens = np.array(list(itertools.product(range(TEXT + IMAGE), repeat=LENGTH)), np.int32)
  nats = np.asarray(token_nll(jax.jit(MODEL.logits)(_table(MODEL), tokens), tokens), np.float64).sum(axis=1)
  np.testing.assert_array_equal(np.isfinite(nats), [_is_stream(row) for row in tokens])
  assert np.exp(-nats).sum() == pytest.approx(1, abs=1e-5)


def test_possible_tokens_have_the_logits_of_the_inner_model():
  table, tokens = _table(MODEL), jnp.array([[2, 1, 0, TEXT + 1], [1, 0, 0, TEXT]])
  inner, outer = MODEL.inner.logits(table, tokens), MODEL.logits(table, tokens)
  allowed = np.isfinite(outer)
  np.testing.assert_array_equal(np.asarray(outer)[allowed], np.asarray(inner)[allowed])
  nats = np.asarray(token_nll(outer, tokens))
  assert nats[0, 2] == nats[1, 1] + nats[1, 2] - nats[1, 1] == 0  # the last pad, and a pad after a pad, are certain
  np.testing.assert_array_equal(MODEL.counted(tokens), [[True] * 4, [True, True, False, True]])


@pytest.mark.parametrize('model', [MODEL, ALONE], ids=['text and image', 'image'])
def test_prefill_and_steps_equal_the_logits_of_the_whole_sequence(model):
  table = _table(model)
  text = np.array([[2, PAD], [1, 1]])[:, : max(model.text_length - 1, 0)]
  image = np.random.default_rng(1).integers(0, IMAGE, (2, model.image_length))
  tokens = model.stream(jnp.asarray(text), jnp.asarray(image))
  np.testing.assert_array_equal(model.codes(tokens), image)
  logits = jax.jit(model.logits)(table, tokens)
  params = model.decode_params(table)
  for start in range(model.length):
    cache, next_logits = model.prefill(params, tokens[:, :start])
    np.testing.assert_allclose(next_logits, logits[:, start], atol=1e-6)
    for t in range(start, model.length - 1):
      cache, next_logits = model.step(params, cache, tokens[:, t])
      np.testing.assert_allclose(next_logits, logits[:, t + 1], atol=1e-6)


def test_stream_without_text_has_the_logits_of_the_inner_model():
  table, tokens = _table(ALONE), jnp.array([[0, 1, 1, 0]])
  np.testing.assert_array_equal(ALONE.logits(table, tokens), ALONE.inner.logits(table, tokens))
  assert ALONE.counted(tokens).all() and ALONE.prefix(jnp.zeros((5, 0), int)).shape == (5, 0)


def test_possible_tokens_are_equally_likely_if_the_inner_model_rules_them_all_out():
  # The corpus has only pads after a pad, so the inner model gives image ids no probability.
  table = _table(MODEL, 'maximum_likelihood', np.array([[1, 0, 0, 0]]))
  logits = MODEL.logits(table, jnp.array([[1, 0, 0, TEXT]]))[0, -1]
  np.testing.assert_allclose(jax.nn.softmax(logits), [0, 0, 0, 0.5, 0.5])
