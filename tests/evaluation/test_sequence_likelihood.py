import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.config import MeshConfig
from dalle_jax.evaluation import sequence_likelihood
from dalle_jax.models.ngram import Ngram
from dalle_jax.sharding import make_mesh
from dalle_jax.training import ngram_counts

VOCAB, ORDER = 4, 3


@pytest.fixture(scope='module')
def mesh():
  return make_mesh(MeshConfig())


@pytest.fixture(scope='module')
def tokens():
  """A text in which the two previous tokens mostly determine the next token."""
  rng = np.random.default_rng(0)
  text = [0, 1]
  for _ in range(600):
    text.append((text[-1] + text[-2]) % VOCAB if rng.random() < 0.9 else int(rng.integers(VOCAB)))
  return np.array(text, np.int32)


@pytest.fixture(scope='module')
def table(tokens):
  return jax.tree.map(jnp.asarray, ngram_counts.estimate(ngram_counts.count([tokens], VOCAB, ORDER, starts=False)))


MODEL = Ngram(VOCAB, 16, ORDER)


def test_nats_match_the_logits_for_every_batch_size(mesh, table, tokens):
  rows = tokens[: 5 * 16].reshape(5, 16)
  logits = np.asarray(MODEL.logits(table, jnp.asarray(rows)), np.float64)
  expected = -np.take_along_axis(logits, rows[..., None], -1)[..., 0]
  done = []
  for size in (1, 2, 5, 64):
    row_nats = sequence_likelihood.nats(MODEL, table, rows, mesh, size, lambda *counts: done.append(counts))
    np.testing.assert_allclose(row_nats, expected, atol=1e-6)
  assert done[:5] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)] and done[-1] == (5, 5)


def test_the_summary_has_bits_per_token_and_per_byte():
  row_nats = np.log(2) * np.array([[1.0, 3.0], [2.0, 2.0], [4.0, 0.0]])
  figures = sequence_likelihood.summarize(row_nats, num_bytes=24)
  assert figures['bits_per_token'] == pytest.approx(2) and figures['bits_per_token_stderr'] == pytest.approx(0)
  assert figures['bits_per_byte'] == pytest.approx(12 / 24) and figures['perplexity'] == pytest.approx(4)
  assert (figures['num_tokens'], figures['num_bytes']) == (6, 24)
  impossible = sequence_likelihood.summarize(np.array([[1.0, np.inf], [1.0, 1.0]]), 2)
  assert {impossible[name] for name in ('perplexity', 'bits_per_token', 'bits_per_token_stderr')} == {math.inf}


def test_context_lengths_end_with_the_longest_possible_context():
  assert sequence_likelihood.context_lengths(16) == [0, 1, 2, 3, 4, 6, 8, 12, 15]
  assert sequence_likelihood.context_lengths(2) == [0, 1]


def test_an_ngram_uses_a_context_of_order_minus_one_tokens(mesh, table, tokens):
  lengths = sequence_likelihood.context_lengths(16)
  bits = dict(zip(lengths, sequence_likelihood.by_context(MODEL, table, tokens, mesh, 64, lengths, 200), strict=True))
  assert bits[2] < bits[0] - 0.5  # two tokens of context determine most targets
  np.testing.assert_allclose([bits[n] for n in lengths if n >= 2], bits[2], atol=1e-6)
  with pytest.raises(ValueError, match='10 tokens are too few for a context of 15'):
    sequence_likelihood.by_context(MODEL, table, tokens[:10], mesh, 64, lengths, 5)


def test_num_values_counts_all_leaves(table):
  assert sequence_likelihood.num_values({'a': jnp.zeros((2, 3)), 'b': jnp.zeros(4)}) == 10
  assert sequence_likelihood.num_values(table) == sum(np.size(leaf) for leaf in jax.tree.leaves(table))
