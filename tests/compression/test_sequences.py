"""Tests of coding rows of tokens, with every kind of sequence model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax.compression.coders import CODERS
from dalle_jax.compression.sequences import SequenceCoder
from dalle_jax.models.attention import Pattern
from dalle_jax.models.language import TransformerLanguageModel
from dalle_jax.models.neural_ngram import NeuralNgram
from dalle_jax.models.ngram import Ngram
from dalle_jax.models.recurrent import Recurrent
from dalle_jax.models.sequence import token_nll
from dalle_jax.models.transformer import BlockShape, Transformer

VOCAB, LENGTH = 7, 9
SHAPE = BlockShape(num_layers=2, embed_dim=8, num_heads=2, init_scale=1.0)
MODELS = {
  'ngram': Ngram(VOCAB, LENGTH, 1),
  'neural_ngram': NeuralNgram(VOCAB, LENGTH, 3, 5, 6),
  'lstm': Recurrent('lstm', VOCAB, LENGTH, 2, 5, 6),
  'transformer': TransformerLanguageModel(VOCAB, Transformer(SHAPE, (Pattern('full', LENGTH, 0),))),
}


def _params(model):
  rng = np.random.default_rng(0)
  params = jax.jit(lambda: nn.unbox(model.init(jax.random.key(0))))()
  return jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int32 else _noise(rng, leaf), params)


def _noise(rng, leaf):
  return jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)


@pytest.fixture(scope='module', params=MODELS)
def setting(request):
  model = MODELS[request.param]
  params = _params(model)
  return model, params, SequenceCoder(model, params, 3)


def _rows(*lengths):
  rng = np.random.default_rng(1)
  return [rng.integers(0, VOCAB, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize('coder', CODERS)
@pytest.mark.parametrize('lengths', [(LENGTH, LENGTH, LENGTH), (LENGTH, 4), (1,), (0,), ()])
def test_rows_round_trip(setting, coder, lengths):
  _, _, sequences = setting
  rows = _rows(*lengths)
  encoder = CODERS[coder][0]()
  sequences.encode(rows, encoder)
  decoded = sequences.decode(lengths, CODERS[coder][1](encoder.finish()))
  assert [row.tolist() for row in decoded] == [row.tolist() for row in rows]


def test_the_cost_is_the_negative_log_likelihood_and_the_size_of_the_code(setting):
  model, params, sequences = setting
  rows = _rows(LENGTH, LENGTH, 5)
  encoder = CODERS['range'][0]()
  nats = sequences.encode(rows, encoder)
  expected, logits = 0.0, jax.jit(model.logits)
  for row in rows:
    padded = np.pad(row, (0, LENGTH - len(row)))[None]
    expected += float(np.sum(token_nll(logits(params, jnp.asarray(padded)), padded)[0, : len(row)]))
  assert nats == pytest.approx(expected, rel=1e-5)
  assert 8 * len(encoder.finish()) == pytest.approx(nats / np.log(2), abs=9)


def test_probabilities_of_a_row_do_not_depend_on_the_other_rows(setting):
  _, _, sequences = setting
  seen = []

  class Spy:
    def put(self, cumulative, symbol):
      seen.append(cumulative.copy())

  (row,) = _rows(LENGTH)
  sequences.encode([row, *_rows(0, 0)], Spy())
  alone = list(seen)
  seen.clear()
  sequences.encode([row, *_rows(LENGTH, LENGTH)], Spy())
  for a, b in zip(alone, seen[::3], strict=True):
    np.testing.assert_array_equal(a, b)


def test_nan_outputs_are_reported(setting):
  model, params, _ = setting
  broken = jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int32 else leaf * jnp.nan, params)
  with pytest.raises(ValueError, match='NaN'):
    SequenceCoder(model, broken, 3).encode(_rows(2), CODERS['range'][0]())
