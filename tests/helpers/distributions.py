"""Random distributions and messages for tests of entropy coders."""

import numpy as np

from dalle_jax.compression.range_coder import PRECISION

TOTAL = 1 << PRECISION


def cumulative(frequencies):
  """Cumulative frequencies, starting with 0."""
  return np.concatenate([[0], np.cumsum(frequencies)]).astype(np.int32)


def random_sums(rng, size, concentration=1.0):
  """Cumulative frequencies of a random distribution over `size` symbols."""
  probs = rng.dirichlet(np.full(size, concentration))
  frequencies = np.floor(probs * (TOTAL - size)).astype(np.int64) + 1
  frequencies[probs.argmax()] += TOTAL - frequencies.sum()
  return cumulative(frequencies)


def random_message(rng, length, sizes, concentration):
  """Random distributions, and a symbol sampled from each: two lists of `length`."""
  sums = [random_sums(rng, int(rng.choice(sizes)), concentration) for _ in range(length)]
  return sums, [int(rng.choice(len(s) - 1, p=np.diff(s) / TOTAL)) for s in sums]


def ideal_bits(sums, symbols):
  """The information content of the symbols, in bits."""
  return sum(-np.log2((int(s[i + 1]) - int(s[i])) / TOTAL) for s, i in zip(sums, symbols, strict=True))


def code(encoder, sums, symbols):
  """Encodes the symbols and returns the bytes."""
  for distribution, symbol in zip(sums, symbols, strict=True):
    encoder.put(distribution, symbol)
  return encoder.finish()
