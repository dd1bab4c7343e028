import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.models.ngram import Ngram
from dalle_jax.training import ngram_counts

START = 's'
CORPUS = [[0, 1, 2, 0, 1, 2, 3, 3, 0, 1], [2, 0, 1, 2, 2], [3], [0, 1, 3, 0, 0, 1, 2]]
VOCAB = 5  # 4 never occurs
# Seen and unseen contexts, at the start of a sequence and later.
QUERIES = [[0, 1, 2, 3], [2, 0, 1, 3], [3, 3, 3, 3], [4, 0, 1, 2], [1, 4, 0, 0], [2, 2, 2, 2]]


def _grams(order):
  """Count all n-grams that do not end in a start token, by length."""
  counts = collections.defaultdict(collections.Counter)
  for sequence in CORPUS:
    padded = [START] * (order - 1) + sequence
    for k in range(1, order + 1):
      for i in range(len(padded) - k + 1):
        if padded[i + k - 1] != START:
          counts[k][tuple(padded[i : i + k])] += 1
  return counts


class _Reference:
  """Plain implementation of the smoothing formulas with dictionaries."""

  def __init__(self, order, smoothing, discount, add_k):
    self.order, self.smoothing, self.discount, self.add_k = order, smoothing, discount, add_k
    self.raw = _grams(order)

  def counts(self, k):
    if self.smoothing != 'kneser_ney' or k == self.order:
      return self.raw[k]
    return collections.Counter(gram[1:] for gram in self.raw[k + 1])

  def prob(self, word, context):
    k = len(context) + 1
    followers = {gram[-1]: c for gram, c in self.counts(k).items() if gram[:-1] == context}
    total = sum(followers.values())
    c = followers.get(word, 0)
    if self.smoothing == 'add_k':
      return (c + self.add_k) / (total + self.add_k * VOCAB) if k == self.order else 1 / VOCAB
    if not total:
      return self.prob(word, context[1:])
    if self.smoothing == 'maximum_likelihood':
      return c / total
    d = self.discount
    saved = d * len(followers) / total
    if self.smoothing == 'kneser_ney':
      return max(c - d, 0) / total + saved * (self.prob(word, context[1:]) if context else 1 / VOCAB)
    if c:
      return (c - d) / total
    shorter = {w: self.prob(w, context[1:]) if context else 1 / VOCAB for w in range(VOCAB)}
    return saved * shorter[word] / sum(p for w, p in shorter.items() if w not in followers)


def _logits(order, sequences, **options):
  table = ngram_counts.estimate(ngram_counts.count(map(np.array, CORPUS), VOCAB, order), **options)
  tokens = jnp.asarray(sequences, jnp.int32)
  logits = jax.jit(Ngram(VOCAB, tokens.shape[1], order).logits)
  return np.asarray(logits(jax.tree.map(jnp.asarray, table), tokens), np.float64)


@pytest.mark.parametrize('smoothing', ngram_counts.SMOOTHINGS)
@pytest.mark.parametrize('order', [1, 2, 3, 4])
def test_probabilities_equal_the_formulas(order, smoothing):
  probs = np.exp(_logits(order, QUERIES, smoothing=smoothing, discount=0.4, add_k=0.3))
  reference = _Reference(order, smoothing, 0.4, 0.3)
  for sequence, rows in zip(QUERIES, probs, strict=True):
    padded = [START] * (order - 1) + sequence
    for t, row in enumerate(rows):
      context = tuple(padded[t : t + order - 1])
      expected = [reference.prob(w, context) for w in range(VOCAB)]
      np.testing.assert_allclose(row, expected, atol=1e-6, err_msg=str(context))


@pytest.mark.parametrize('order', [2, 3, 4])
def test_perplexity_equals_that_of_nltk(order):
  lm = pytest.importorskip('nltk.lm')
  words = 'the cat sat on the mat and the dog sat on the cat and the mat'.split()
  vocabulary = sorted(set(words))
  corpus = [words, words[::2], words[3:9]]
  held_out = ['the', 'dog', 'sat', 'on', 'mat', 'and', 'cat', 'the', 'mat']

  reference = lm.KneserNeyInterpolated(order, discount=0.3)
  grams = [
    gram
    for text in corpus
    for k in range(1, order + 1)
    for gram in _windows(['<s>'] * (order - 1) + text, k)
    if gram[-1] != '<s>'
  ]
  reference.fit([grams], vocabulary)
  expected = reference.perplexity(_windows(['<s>'] * (order - 1) + held_out, order))

  ids = {word: i for i, word in enumerate(vocabulary)}
  sequences = [np.array([ids[word] for word in text]) for text in corpus]
  table = ngram_counts.estimate(ngram_counts.count(sequences, len(vocabulary), order), discount=0.3)
  tokens = jnp.asarray([[ids[word] for word in held_out]])
  model = Ngram(len(vocabulary), tokens.shape[1], order)
  logits = np.asarray(model.logits(jax.tree.map(jnp.asarray, table), tokens), np.float64)
  bits = -np.take_along_axis(logits, np.asarray(tokens)[..., None], -1).mean() / math.log(2)
  assert 2**bits == pytest.approx(expected, rel=1e-6)


def _windows(words, k):
  return [tuple(words[i : i + k]) for i in range(len(words) - k + 1)]


def test_the_discount_is_estimated_from_counts_of_counts():
  assert ngram_counts.estimated_discount(np.array([1.0, 1, 1, 2, 5])) == pytest.approx(3 / 5)
  assert ngram_counts.estimated_discount(np.array([3.0, 3])) == 0.05
  assert ngram_counts.estimated_discount(np.array([1.0])) == 0.95


def test_no_ngram_crosses_two_sequences():
  levels = ngram_counts.count([np.array([0, 1]), np.array([2, 3])], 4, 2)
  pairs = set(zip(levels[1].parent.tolist(), levels[1].token.tolist(), strict=True))
  assert pairs == {(4, 0), (0, 1), (4, 2), (2, 3)}


def test_without_start_tokens_a_first_token_has_the_unigram_distribution():
  corpus = [np.array([0, 1, 1, 0, 1])]
  levels = ngram_counts.count(corpus, 2, 3, starts=False)
  assert (levels[1].parent < 2).all() and (levels[2].parent < len(levels[1].token)).all()
  assert levels[1].count.sum() == 4 and levels[2].count.sum() == 3
  table = jax.tree.map(jnp.asarray, ngram_counts.estimate(levels, discount=0.5))
  logits = Ngram(2, 4, 3).logits(table, jnp.asarray([[0, 1, 0, 1]]))
  np.testing.assert_allclose(logits[0, 0], table[0]['log_prob'][:2], rtol=1e-6)
  np.testing.assert_allclose(np.exp(logits).sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'order': 9}, 'order is 9; it must lie in 1 to 8'),
    ({'order': 0}, 'order is 0'),
    ({'sequences': [np.array([1, 5])]}, 'ids from 1 to 5; they must lie in 0 to 4'),
    ({'sequences': []}, 'no sequence to count'),
    ({'smoothing': 'good_turing'}, "'good_turing'; allowed are kneser_ney"),
    ({'discount': 1.0}, r'discount is 1\.0'),
    ({'smoothing': 'add_k'}, r'k of add_k is 0\.0'),
  ],
)
def test_invalid_sequences_and_settings_are_refused(changes, message):
  sequences, order = changes.pop('sequences', [np.array([0, 1])]), changes.pop('order', 2)
  with pytest.raises(ValueError, match=message):
    ngram_counts.estimate(ngram_counts.count(sequences, 5, order), **changes)


@pytest.mark.slow
def test_ten_million_ngrams_take_at_most_sixteen_bytes_each():
  rng = np.random.default_rng(0)
  corpus = (rng.zipf(1.2, 3_000_000) % 8192).astype(np.int32)
  table = ngram_counts.estimate(ngram_counts.count([corpus], 8192, 6))
  ngrams = sum(len(level['token']) for level in table)
  assert ngrams > 10_000_000
  assert sum(array.nbytes for level in table for array in level.values()) <= 16 * ngrams
