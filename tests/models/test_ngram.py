import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.models.ngram import Ngram
from dalle_jax.training import ngram_counts
from dalle_jax.training.ngram_counts import SMOOTHINGS

VOCAB = 5


def _model(order, smoothing='kneser_ney'):
  """A model, and its table from a corpus in which the id 4 does not occur."""
  rng = np.random.default_rng(0)
  corpus = [rng.integers(0, VOCAB - 1, size=n) for n in (7, 1, 30, 0, 12)]
  table = ngram_counts.estimate(ngram_counts.count(corpus, VOCAB, order), smoothing=smoothing, add_k=0.3)
  return Ngram(VOCAB, 8, order), jax.tree.map(jnp.asarray, table)


def _sequences(order):
  """Sequences of 8 tokens with all possible beginnings of min(order, 4) tokens and random continuations."""
  begin = np.array(list(itertools.product(range(VOCAB), repeat=min(order, 4))), np.int32)
  rest = np.random.default_rng(1).integers(0, VOCAB, (len(begin), 8 - begin.shape[1]))
  return np.concatenate([begin, rest.astype(np.int32)], axis=1)


@pytest.mark.parametrize('smoothing', SMOOTHINGS)
@pytest.mark.parametrize('order', [1, 2, 3, 5, 8])
def test_probabilities_sum_to_one_after_every_context(order, smoothing):
  model, table = _model(order, smoothing)
  logits = np.asarray(jax.jit(model.logits)(table, _sequences(order)), np.float64)
  np.testing.assert_allclose(np.exp(logits).sum(-1), 1, atol=1e-6)
  assert (logits[..., 4] > -np.inf).all() == (smoothing != 'maximum_likelihood')


@pytest.mark.parametrize('order', [1, 2, 4])
def test_prefill_and_steps_equal_the_logits_of_the_whole_sequence(order):
  model, table = _model(order)
  tokens = _sequences(order)
  logits = np.asarray(jax.jit(model.logits)(table, tokens))
  params = jax.jit(model.decode_params)(table)
  prefill, step = jax.jit(model.prefill), jax.jit(model.step)
  for start in (0, 1, 3):
    cache, next_logits = prefill(params, tokens[:, :start])
    np.testing.assert_allclose(next_logits, logits[:, start], atol=1e-6)
    for t in range(start, 7):
      cache, next_logits = step(params, cache, tokens[:, t])
      np.testing.assert_allclose(next_logits, logits[:, t + 1], atol=1e-6)


def test_logits_depend_on_the_previous_order_minus_one_tokens():
  model, table = _model(3)
  tokens = _sequences(3)[:1]
  logits_of = jax.jit(model.logits)
  first = logits_of(table, tokens)
  changed = logits_of(table, np.concatenate([(tokens[:, :2] + 1) % VOCAB, tokens[:, 2:]], axis=1))
  assert np.abs(first[:, 2:4] - changed[:, 2:4]).max() > 0.01
  np.testing.assert_array_equal(first[:, 4:], changed[:, 4:])


@pytest.mark.parametrize('order', [1, 3])
def test_initial_table_makes_all_tokens_equally_likely(order):
  model = Ngram(VOCAB, 8, order)
  logits = jax.jit(model.logits)(model.init(jax.random.key(0)), _sequences(order))
  np.testing.assert_allclose(logits, -np.log(VOCAB), rtol=1e-6)
